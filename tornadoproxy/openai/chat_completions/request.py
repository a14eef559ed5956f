"""The translation of a chat completions request into a messages request.

Sources: https://platform.openai.com/docs/api-reference/chat/create and
https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.chat_completions import conversation, fields, tools
from tornadoproxy.openai.messages_request import (
    SAMPLING,
    TranslatedRequest,
    Wishes,
    messages_request,
)
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.reading import (
    Json,
    array,
    boolean,
    dump,
    integer,
    obj,
    one_of,
    refuse,
    text,
)
from tornadoproxy.openai.schema import FORMATS, Grammar, output_format
from tornadoproxy.openai.thinking import Reasoning

_NEW_MODEL = Capabilities()
_LIMITS = ("max_completion_tokens", "max_tokens")

# The fields whose translation depends on the model's capabilities.
_BY_CAPABILITIES = (
    "function_call",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
)


class Translation(TranslatedRequest, frozen=True, kw_only=True):
    """See `TranslatedRequest`.

    :param include_usage: whether a stream ends with a chunk that holds the usage.
    :param legacy_functions: whether calls are returned as ``function_call``.
    """

    include_usage: bool
    legacy_functions: bool


def depends_on_capabilities(document: Json, options: Options) -> bool:
    """Whether the translation of a request depends on its model's capabilities."""
    has_limit = any(document.get(name) is not None for name in _LIMITS)
    if not has_limit and options.default_max_tokens is None:
        return True
    return any(document.get(name) is not None for name in _BY_CAPABILITIES)


def translate_request(
    document: Json,
    *,
    options: Options | None = None,
    capabilities: Capabilities | None = None,
) -> Translation:
    """Translate a request by the treatment of each field; see `fields`.

    :param document: the request's body; see `reading.parse`. It stays unchanged.
    :param capabilities: the model's capabilities, if known.
    :raises InvalidRequest: the request is invalid; the error's ``param`` names the place.
    """
    options = options or Options()
    able = capabilities or _NEW_MODEL
    ignored = fields.ignored(document)
    if not fields.REFUSED.isdisjoint(document):
        _refuse_impossible(document)
    if "messages" not in document:
        raise InvalidRequest("'messages' is required.", param="messages")
    talk = conversation.translate(document["messages"], ignored, prefill=options.prefill)
    grammar = Grammar()
    # before the tools, which get the limits that the format leaves
    output = _format(document, talk.system, able, grammar, ignored)
    offer = tools.translate(document, talk.called, able, grammar, ignored)
    stream, include_usage = _stream(document)
    effort = document.get("reasoning_effort")
    wishes = Wishes(
        limits=_LIMITS,
        reasoning=None if effort is None else Reasoning(effort, "reasoning_effort"),
        output=output,
        stream=stream,
        stop=_stop(document, ignored),
    )
    body = messages_request(document, talk, offer, wishes, options, able, ignored)
    return Translation(
        body=dump(body),
        stream=stream,
        include_usage=include_usage,
        legacy_functions=tools.uses_legacy_functions(document),
        samples=not SAMPLING.isdisjoint(body),
        ignored=options.listed(ignored),
    )


def _refuse_impossible(document: Json) -> None:
    if document.get("n") is not None and integer(document["n"], "n", 1) != 1:
        refuse("n", "must be 1: a response has one choice")
    if document.get("logprobs") is not None and boolean(document["logprobs"], "logprobs"):
        refuse("logprobs", "must be false: there are no log probabilities")
    if document.get("top_logprobs"):
        refuse("top_logprobs", "must be 0: there are no log probabilities")
    if document.get("audio") is not None:
        refuse("audio", "is not supported: there is no audio output")
    modalities = document.get("modalities")
    if modalities is not None and "audio" in array(modalities, "modalities"):
        refuse("modalities", "must be ['text']: there is no audio output")


def _stop(document: Json, ignored: list[str]) -> list[str]:
    stop = document.get("stop")
    if stop is None:
        return []
    listed = [stop] if isinstance(stop, str) else array(stop, "stop")
    sequences = [text(each, f"stop[{index}]") for index, each in enumerate(listed)]
    kept = [each for each in sequences if each.strip()]
    if any(each and not each.strip() for each in sequences):
        ignored.append("stop")
    return kept


def _format(
    document: Json, system: list[Json], able: Capabilities, grammar: Grammar, ignored: list[str]
) -> Json | None:
    if document.get("response_format") is None:
        return None
    wanted = obj(document["response_format"], "response_format")
    kind = one_of(wanted.get("type"), "response_format.type", FORMATS)
    param = "response_format"
    if kind == "json_schema":
        param = "response_format.json_schema"
        wanted = obj(wanted.get("json_schema"), param)
    return output_format(kind, wanted, param, system, able, grammar, ignored)


def _stream(document: Json) -> tuple[bool, bool]:
    """Return whether the response is streamed, and whether the stream includes the usage."""
    stream = document.get("stream")
    streamed = stream is not None and boolean(stream, "stream")
    settings = document.get("stream_options")
    if settings is None:
        return streamed, False
    settings = obj(settings, "stream_options")
    if not streamed:
        refuse("stream_options", "needs stream to be true")
    include = settings.get("include_usage")
    return True, include is not None and boolean(include, "stream_options.include_usage")
