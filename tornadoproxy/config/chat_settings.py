"""The core's settings of OpenAI's APIs, both of them, each declared once."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tornadoproxy.config import parsers
from tornadoproxy.config.setting import Setting

CHAT_MODELS: Setting[Mapping[str, str]] = Setting(
    "CHAT_MODELS",
    parsers.pairs,
    default=MappingProxyType({}),
    help=(
        "upstream models for the names that OpenAI clients send, such as 'gpt-5=claude-opus-5-5 "
        "*=claude-sonnet-5-5'; * is any other name that is not Claude's"
    ),
    blank=True,
)
CHAT_DEFAULT_MAX_TOKENS: Setting[int | None] = Setting(
    "CHAT_DEFAULT_MAX_TOKENS",
    parsers.integer(minimum=1),
    default=None,
    help=(
        "max_tokens of a request of an OpenAI client that sets no limit. Without it, the model's "
        "own maximum is used (32000 if the upstream's list of models does not name it)."
    ),
)
CHAT_STRICT: Setting[bool] = Setting(
    "CHAT_STRICT",
    parsers.boolean,
    default=False,
    help=(
        "reject a request of an OpenAI client that uses a field without counterpart, instead of "
        "dropping the field and naming it in x-tornadoproxy-ignored"
    ),
)
CHAT_DROP_SAMPLING: Setting[bool] = Setting(
    "CHAT_DROP_SAMPLING",
    parsers.boolean,
    default=False,
    help=(
        "drop temperature, top_p and top_k of a request of an OpenAI client, instead of sending "
        "the last anthropic-version that accepts them"
    ),
)
CHAT_PREFILL: Setting[bool] = Setting(
    "CHAT_PREFILL",
    parsers.boolean,
    default=False,
    help=(
        "let the model continue a trailing assistant message, which models since Claude 4.6 "
        "reject, instead of asking for a new message as OpenAI's models do"
    ),
)
CHAT_CACHE: Setting[str] = Setting(
    "CHAT_CACHE",
    parsers.choice("auto", "always", "off"),
    default="auto",
    help=(
        "when to cache the prompt of an OpenAI client that has no cache_control: auto (if it has "
        "tools or an assistant message), always, or off"
    ),
)
