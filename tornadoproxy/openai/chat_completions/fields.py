"""The treatment of each field of a chat completions request.

Every field of OpenAI's API has exactly one treatment, and so has every field of Anthropic's API
that clients can add (``extra_body``). A test compares this table with the installed ``openai``
package. The table in the documentation is generated from it.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json


class Treatment(Enum):
    """The treatment of a field."""

    TRANSLATED = "translated"
    """It has a counterpart."""
    IGNORED = "ignored"
    """Dropped and named in ``x-tornadoproxy-ignored``; with ``CHAT_STRICT``, a 400.

    Fields that neither API has are treated so, too.
    """
    REFUSED = "refused"
    """A 400 that names it, if Claude cannot do what its value requests."""
    PASSED = "passed"
    """A field of Anthropic's API, which goes upstream unchanged."""


_TRANSLATED = {
    "messages": "`messages`, and `system` for system and developer messages",
    "model": "`model`, by way of `CHAT_MODELS`",
    "max_completion_tokens": "`max_tokens`",
    "max_tokens": "`max_tokens`, unless `max_completion_tokens` is sent",
    "stop": "`stop_sequences`; blank sequences are ignored",
    "temperature": "`temperature`; 1, the default, and higher values are not sent",
    "top_p": "`top_p`, unless `temperature` is sent; 1, the default, is not sent",
    "tools": "`tools`; only `function` tools",
    "functions": "`tools`",
    "tool_choice": "`tool_choice`; a sentence in `system` if the model cannot be forced",
    "function_call": "same as `tool_choice`",
    "prompt_cache_options": "`mode`: `explicit` suspends `CHAT_CACHE`; `ttl`: the one-hour cache",
    "prompt_cache_retention": "`24h`: the one-hour cache, in the request's `cache_control`",
    "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use`",
    "response_format": "`output_config.format`; a sentence in `system` if that cannot express it",
    "reasoning_effort": "`output_config.effort` and `thinking`",
    "user": "`metadata.user_id`; its SHA-256 if it is an e-mail address, a phone number or long",
    "safety_identifier": "same as `user`, unless `user` or `metadata.user_id` is sent",
    "metadata": "its `user_id` is treated as `user`; other keys are ignored",
    "stream": "`stream`",
    "stream_options": (
        "`include_usage` adds a chunk with the usage of all models that a response called "
        "(an advisor, or an attempt that declined before a fallback)"
    ),
    "service_tier": "`service_tier`, for Anthropic's values; other values are ignored",
}

_IGNORED = {
    "frequency_penalty": "no counterpart",
    "logit_bias": "no counterpart",
    "moderation": "no counterpart",
    "prediction": "no counterpart",
    "presence_penalty": "no counterpart",
    "prompt_cache_key": "prompts are cached without keys",
    "seed": "no counterpart",
    "stop_sequences": "Anthropic's name: use `stop`",
    "store": "nothing is stored",
    "system": "Anthropic's name: use a system message",
    "verbosity": "no counterpart",
    "web_search_options": "no counterpart",
}

_REFUSED = {
    "audio": "there is no audio output",
    "logprobs": "`true` is refused: there are no log probabilities",
    "modalities": "`audio` is refused",
    "n": "more than 1 is refused: a response has one choice",
    "top_logprobs": "more than 0 is refused",
}

_PASSED = {
    "billing_policy": "",
    "cache_control": "caches the request up to its last block",
    "compaction": "",
    "container": "",
    "context_management": "",
    "diagnostics": "",
    "fallback_credit_token": "",
    "fallbacks": "",
    "inference_geo": "",
    "mcp_servers": "",
    "output_config": "merged with `response_format` and `reasoning_effort`",
    "speed": "",
    "thinking": "replaces the thinking of `reasoning_effort`",
    "thread": "",
    "top_k": "",
}

FIELDS: dict[str, tuple[Treatment, str]] = {
    **{name: (Treatment.TRANSLATED, note) for name, note in _TRANSLATED.items()},
    **{name: (Treatment.IGNORED, note) for name, note in _IGNORED.items()},
    **{name: (Treatment.REFUSED, note) for name, note in _REFUSED.items()},
    **{name: (Treatment.PASSED, note) for name, note in _PASSED.items()},
}
"""The treatment of each field, with a note for the documentation."""

PASSED = frozenset(_PASSED)
REFUSED = frozenset(_REFUSED)

# Ignored fields with these values request nothing, so they are not reported.
_DEFAULTS: dict[str, object] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "store": False,
}

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def ignored(document: Json) -> list[str]:
    """Return the names of a request's dropped fields.

    The names go out in a header, so a name that does not fit there becomes ``unknown``.
    """
    return [
        name if _NAME.fullmatch(name) else "unknown"
        for name, value in document.items()
        if FIELDS.get(name, _UNKNOWN)[0] is Treatment.IGNORED
        and value is not None
        and (name not in _DEFAULTS or value != _DEFAULTS[name])
    ]


_UNKNOWN = (Treatment.IGNORED, "")
