"""The treatment of each field of a chat completions request.

Every field of OpenAI's API has exactly one treatment, and so has every field of Anthropic's API
that clients can add (``extra_body``). A test compares this table with the installed ``openai``
package. The table in the documentation is generated from it.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.treatment import (
    PASSED,
    Table,
    Treatment,
    header_name,
    ignored_fields,
    table,
)

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

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
    "prompt_cache_key": "with any value, `CHAT_CACHE=auto` caches the prompt",
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

FIELDS: Table = table(
    {
        Treatment.TRANSLATED: _TRANSLATED,
        Treatment.IGNORED: _IGNORED,
        Treatment.REFUSED: _REFUSED,
        Treatment.PASSED: PASSED,
    }
)
"""The treatment of each field; fields that neither API has are ignored, too."""

REFUSED = frozenset(_REFUSED)

# Ignored fields with these values request nothing, so they are not reported.
_DEFAULTS: dict[str, object] = {
    "frequency_penalty": 0,
    "logit_bias": {},
    "presence_penalty": 0,
    "store": False,
}


def ignored(document: Json) -> list[str]:
    """Return the names of a request's dropped fields, unknown ones included, for a header."""
    unknown = [
        header_name(name)
        for name, value in document.items()
        if name not in FIELDS and value is not None
    ]
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and metadata.keys() - {"user_id"}:
        unknown.append("metadata")
    return ignored_fields(document, FIELDS, _DEFAULTS) + unknown
