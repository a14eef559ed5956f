"""What becomes of each field of a chat completions request.

Every field that OpenAI's API knows is in exactly one class, and so is every field of Anthropic's
that clients can add (``extra_body``). A test holds this table against the installed ``openai``
package; the table in the documentation is made from it.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json


class Treatment(Enum):
    """What becomes of a field."""

    TRANSLATED = "translated"
    """It has a counterpart."""
    IGNORED = "ignored"
    """Dropped and named in ``x-tornadoproxy-ignored``; with ``CHAT_STRICT``, a 400.

    So is every field that neither API knows.
    """
    REFUSED = "refused"
    """A 400 that names it, if its value asks for what Claude cannot do."""
    PASSED = "passed"
    """Anthropic's own: goes upstream as it is."""


_TRANSLATED = {
    "messages": "`messages`, and `system` for system and developer messages",
    "model": "`model`, by way of `CHAT_MODELS`",
    "max_completion_tokens": "`max_tokens`",
    "max_tokens": "`max_tokens`, unless `max_completion_tokens` is there",
    "stop": "`stop_sequences`; blank ones are ignored",
    "temperature": "`temperature`; 1, the default, and what is above it are not sent",
    "top_p": "`top_p`, unless `temperature` is sent; 1, the default, is not sent",
    "tools": "`tools`; only `function` tools",
    "functions": "`tools`",
    "tool_choice": "`tool_choice`; a wish in `system` where the model cannot be forced",
    "function_call": "as `tool_choice`",
    "prompt_cache_options": "`mode`: `explicit` suspends `CHAT_CACHE`; `ttl`: the one-hour cache",
    "prompt_cache_retention": "`24h`: the one-hour cache, in the request's `cache_control`",
    "parallel_tool_calls": "`tool_choice.disable_parallel_tool_use`",
    "response_format": "`output_config.format`; a wish in `system` where that cannot say it",
    "reasoning_effort": "`output_config.effort` and `thinking`",
    "user": "`metadata.user_id`; its SHA-256 if it is an e-mail address, a phone number or long",
    "safety_identifier": "as `user`, unless `user` or `metadata.user_id` is there",
    "metadata": "its `user_id` as `user`; other keys are ignored",
    "stream": "`stream`",
    "stream_options": (
        "`include_usage` adds the chunk with the usage, which is that of all models of a response "
        "(an advisor's, and a declined attempt's before a fallback)"
    ),
    "service_tier": "`service_tier`, for Anthropic's own values; others are ignored",
}

_IGNORED = {
    "frequency_penalty": "no counterpart",
    "logit_bias": "no counterpart",
    "moderation": "no counterpart",
    "prediction": "no counterpart",
    "presence_penalty": "no counterpart",
    "prompt_cache_key": "caching follows the prompt, not a key",
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
    "n": "more than 1 is refused: there is one answer",
    "top_logprobs": "more than 0 is refused",
}

_PASSED = {
    "billing_policy": "",
    "cache_control": "caches up to the last block",
    "compaction": "",
    "container": "",
    "context_management": "",
    "diagnostics": "",
    "fallback_credit_token": "",
    "fallbacks": "",
    "inference_geo": "",
    "mcp_servers": "",
    "output_config": "joined with what `response_format` and `reasoning_effort` ask for",
    "speed": "",
    "thinking": "instead of what `reasoning_effort` asks for",
    "thread": "",
    "top_k": "",
}

FIELDS: dict[str, tuple[Treatment, str]] = {
    **{name: (Treatment.TRANSLATED, note) for name, note in _TRANSLATED.items()},
    **{name: (Treatment.IGNORED, note) for name, note in _IGNORED.items()},
    **{name: (Treatment.REFUSED, note) for name, note in _REFUSED.items()},
    **{name: (Treatment.PASSED, note) for name, note in _PASSED.items()},
}
"""Each field's treatment, and a note for the documentation."""

PASSED = frozenset(_PASSED)
REFUSED = frozenset(_REFUSED)

# An ignored field that says what holds anyway is not worth a word.
_DEFAULTS: dict[str, object] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "store": False,
}

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def ignored(document: Json) -> list[str]:
    """The names of a request's fields that are dropped.

    They come from the client, and will be in a header: one that is not a plain name is told as
    ``unknown``.
    """
    return [
        name if _NAME.fullmatch(name) else "unknown"
        for name, value in document.items()
        if FIELDS.get(name, _UNKNOWN)[0] is Treatment.IGNORED
        and value is not None
        and (name not in _DEFAULTS or value != _DEFAULTS[name])
    ]


_UNKNOWN = (Treatment.IGNORED, "")
