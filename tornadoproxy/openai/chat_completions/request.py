"""Translates a chat completions request into a messages request.

Sources: https://platform.openai.com/docs/api-reference/chat/create and
https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai import tools
from tornadoproxy.openai.capabilities import Capabilities
from tornadoproxy.openai.chat_completions import conversation, fields
from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import (
    Json,
    array,
    boolean,
    dump,
    integer,
    number,
    obj,
    one_of,
    refuse,
    text,
)
from tornadoproxy.openai.schema import Grammar

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
UNKNOWN_MAX_TOKENS = 32_000
"""The limit of an answer where neither the request nor the list of models names one."""
_ANY_MAX_TOKENS = 10_000_000  # above the maximum of any model
MAX_USER_ID = 256  # characters
MAX_IGNORED = 32  # names: what is ignored is told in a header

_BUDGETS = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 24576,
    "max": 32000,
}
_TODAYS = Capabilities()
_LIMITS = ("max_completion_tokens", "max_tokens")
_SAMPLING = frozenset({"temperature", "top_p", "top_k"})

# Fields whose translation depends on the model's capabilities.
_BY_CAPABILITIES = ("function_call", "reasoning_effort", "response_format", "tool_choice")

# Upstream refuses these as a user's id. Both are tried on short texts only.
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]")
_PHONE = re.compile(r"\+?(?:[\s().-]*\d){7,15}[\s().-]*")

# `_plain_fields` reads these
_PLAIN = frozenset({"metadata", "safety_identifier", "service_tier", "stop", "user"})
_JSON_ONLY = "Answer with a single JSON object and nothing else: no words around it, no code fence."


@dataclass(frozen=True)
class Options:
    """How to translate where the request leaves it open.

    :param default_max_tokens: if the client names no limit, in place of the model's own maximum,
        which may be lower.
    :param models: from the names that clients send to upstream's; ``*`` stands for any other name
        that does not begin with ``claude``.
    :param strict: refuse what would be ignored.
    :param drop_sampling: never send temperature, top_p or top_k.
    :param prefill: the model continues an assistant message that stands last, which models since
        Claude 4.6 refuse, and all models together with thinking or structured output.
    :param cache: when to cache a request that marks nothing to be cached: ``auto`` (if another turn
        is likely), ``always`` or ``off``.
    """

    default_max_tokens: int | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    drop_sampling: bool = False
    prefill: bool = False
    cache: str = "auto"

    def model(self, name: str) -> str:
        """The upstream's name for the model that a client calls `name`."""
        if name in self.models:
            return self.models[name]
        if "*" in self.models and not name.startswith("claude"):
            return self.models["*"]
        return name


@dataclass(frozen=True)
class Translation:
    """A messages request, and what is needed to translate its answer.

    :param body: the request's body, JSON.
    :param stream: the answer is to be streamed.
    :param include_usage: a stream ends with a chunk that tells the usage.
    :param legacy_functions: calls are told as ``function_call``.
    :param samples: the body has a sampling parameter, which ``anthropic-version`` 2026-10-21
        refuses.
    :param ignored: the names of what was dropped, each once.
    """

    body: bytes = field(repr=False)
    stream: bool
    include_usage: bool
    legacy_functions: bool
    samples: bool
    ignored: tuple[str, ...]


def requested_model(document: Json) -> str:
    """The model that a client asks for.

    :raises InvalidRequest: there is none.
    """
    if document.get("model") is None:
        raise InvalidRequest("you must provide a model parameter", param="model")
    name = text(document["model"], "model")
    if not name.strip():
        refuse("model", "must not be empty")
    return name


def depends_on_capabilities(document: Json, options: Options) -> bool:
    """Return whether the translation of a request depends on what its model can do."""
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
    """Translate a request, as the table of fields in the documentation says.

    :param document: the request's body; see `reading.parse`. It is left as it is.
    :param capabilities: what the model can do, if that is known.
    :raises InvalidRequest: with the ``param`` that is at fault.
    """
    options = options or Options()
    able = capabilities or _TODAYS
    model = options.model(requested_model(document))
    ignored = fields.ignored(document)
    if not fields.REFUSED.isdisjoint(document):
        _refuse_impossible(document)
    if "messages" not in document:
        raise InvalidRequest("'messages' is required.", param="messages")
    talk = conversation.translate(document["messages"], ignored, prefill=options.prefill)
    grammar = Grammar()
    # before the tools, which take what the format leaves
    output = _format(document, talk.system, able, grammar, ignored)
    offer = tools.translate(document, talk.called, able, grammar, ignored)
    if offer.instruction:
        talk.system.append(text_block(offer.instruction))
    body: Json = {
        "model": model,
        "max_tokens": _max_tokens(document, options, able),
        "messages": talk.messages,
    }
    if offer.tools:
        body["tools"] = offer.tools
    if offer.choice is not None:
        body["tool_choice"] = offer.choice
    body |= _plain_fields(document, ignored)
    body |= _passed(document)
    _reason(document, body, talk, able, ignored)
    if output is not None:
        body["output_config"] = {"format": output, **body.get("output_config", {})}
    if talk.system:
        body["system"] = _system(talk.system)
    body |= _sampling(document, body, options, ignored)
    _cache(document, body, options, ignored)
    stream, include_usage = _stream(document)
    if stream:
        body["stream"] = True
    return Translation(
        body=dump(body),
        stream=stream,
        include_usage=include_usage,
        legacy_functions=tools.uses_legacy_functions(document),
        samples=not _SAMPLING.isdisjoint(body),
        ignored=_told(ignored, options),
    )


def _told(ignored: list[str], options: Options) -> tuple[str, ...]:
    if not ignored:
        return ()
    names = tuple(dict.fromkeys(ignored))
    if options.strict:
        raise InvalidRequest(
            f"'{names[0]}' is not supported here, and CHAT_STRICT is on.", param=names[0]
        )
    return names if len(names) <= MAX_IGNORED else (*names[:MAX_IGNORED], "more")


def _refuse_impossible(document: Json) -> None:
    if document.get("n") is not None and integer(document["n"], "n", 1) != 1:
        refuse("n", "must be 1: there is one answer")
    if document.get("logprobs") is not None and boolean(document["logprobs"], "logprobs"):
        refuse("logprobs", "must be false: there are no log probabilities")
    if document.get("top_logprobs"):
        refuse("top_logprobs", "must be 0: there are no log probabilities")
    if document.get("audio") is not None:
        refuse("audio", "is not supported: there is no audio output")
    modalities = document.get("modalities")
    if modalities is not None and "audio" in array(modalities, "modalities"):
        refuse("modalities", "must be ['text']: there is no audio output")


def _max_tokens(document: Json, options: Options, able: Capabilities) -> int:
    for name in _LIMITS:
        if document.get(name) is not None:
            return integer(document[name], name, 1)
    limit = options.default_max_tokens or able.max_tokens or UNKNOWN_MAX_TOKENS
    thinking = document.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int):  # upstream wants a limit above it
        limit = max(limit, 2 * budget)
    return min(limit, able.max_tokens or _ANY_MAX_TOKENS)


def _plain_fields(document: Json, ignored: list[str]) -> Json:
    body: Json = {}
    if _PLAIN.isdisjoint(document):
        return body
    stop = _stop(document, ignored)
    if stop:
        body["stop_sequences"] = stop
    user = _user(document, ignored)
    if user:
        body["metadata"] = {"user_id": user}
    tier = document.get("service_tier")
    if tier is not None and text(tier, "service_tier") == "standard_only":
        body["service_tier"] = tier
    elif tier not in (None, "auto", "default"):
        ignored.append("service_tier")
    return body


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


def _user(document: Json, ignored: list[str]) -> str | None:
    metadata = document.get("metadata")
    metadata = {} if metadata is None else obj(metadata, "metadata")
    if metadata.keys() - {"user_id"}:
        ignored.append("metadata")
    given = {
        "user": document.get("user"),
        "metadata.user_id": metadata.get("user_id"),
        "safety_identifier": document.get("safety_identifier"),
    }
    found = [text(value, param) for param, value in given.items() if value is not None]
    return next((_opaque(user) for user in found if user), None)


def _opaque(user: str) -> str:
    """Return `user`, or its SHA-256 if the upstream would refuse it."""
    if len(user) <= MAX_USER_ID and not _EMAIL.search(user) and not _PHONE.fullmatch(user):
        return user
    return hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()


def _passed(document: Json) -> Json:
    passed = {
        name: value
        for name, value in document.items()
        if name in fields.PASSED and value is not None
    }
    for name in ("thinking", "output_config"):
        if name in passed:
            obj(passed[name], name)
    return passed


def _reason(
    document: Json,
    body: Json,
    talk: conversation.Conversation,
    able: Capabilities,
    ignored: list[str],
) -> None:
    """Effort and thinking, as far as the model has them."""
    if document.get("reasoning_effort") is None:
        return
    effort = one_of(document["reasoning_effort"], "reasoning_effort", EFFORTS)
    # a call that is forced comes without thinking
    forced = body.get("tool_choice", {}).get("type") in {"any", "tool"}
    thinking = None
    if effort == "none":
        thinking = _least_thinking(able)
    elif not forced:
        thinking = _thinking(effort, body["max_tokens"], talk, able)
    # a model that always thinks does so least with the lowest effort
    level = None if effort == "none" and thinking else able.effort(effort)
    if level is not None:
        body["output_config"] = {"effort": level, **body.get("output_config", {})}
    if thinking is not None:
        body.setdefault("thinking", thinking)
    elif level is None and "thinking" not in body:
        ignored.append("reasoning_effort")


def _least_thinking(able: Capabilities) -> Json | None:
    least = next((kind for kind in ("disabled", "between_tools") if kind in able.thinking), None)
    return {"type": least} if least else None


def _thinking(
    effort: str, max_tokens: int, talk: conversation.Conversation, able: Capabilities
) -> Json | None:
    if "adaptive" in able.thinking:
        return {"type": "adaptive", "display": "summarized"}
    budget = min(_BUDGETS[effort], max_tokens // 2)
    if "enabled" in able.thinking and budget >= _BUDGETS["minimal"] and not talk.lacks_thinking:
        return {"type": "enabled", "budget_tokens": budget}
    return None


def _format(
    document: Json, system: list[Json], able: Capabilities, grammar: Grammar, ignored: list[str]
) -> Json | None:
    """Return the format for structured output; otherwise ask for it in the `system` prompt."""
    if document.get("response_format") is None:
        return None
    wanted = obj(document["response_format"], "response_format")
    kind = one_of(
        wanted.get("type"), "response_format.type", ("text", "json_object", "json_schema")
    )
    if kind == "json_object":
        system.append(text_block(_JSON_ONLY))
    if kind != "json_schema":
        return None
    param = "response_format.json_schema"
    described = obj(wanted.get("json_schema"), param)
    given = obj(described.get("schema"), f"{param}.schema")
    fitted = grammar.fit(given) if able.structured_outputs else None
    if fitted is not None:
        return {"type": "json_schema", "schema": fitted}
    if described.get("strict"):
        ignored.append(f"{param}.strict")
    shown = dump(given).decode()
    system.append(text_block(f"{_JSON_ONLY} It must fit this JSON Schema: {shown}"))
    return None


def _system(blocks: list[Json]) -> str | list[Json]:
    if any("cache_control" in block for block in blocks):
        return blocks
    return "\n".join([block["text"] for block in blocks])


def _sampling(document: Json, body: Json, options: Options, ignored: list[str]) -> Json:
    """The sampling parameters, which go only to a model that does not think."""
    given: Json = {}
    if _SAMPLING.isdisjoint(document):
        return given
    for name, maximum in (("temperature", 2), ("top_p", 1)):
        if document.get(name) is not None:
            value = min(number(document[name], name, 0, maximum), 1)
            if value != 1:  # the default of both, which newer models refuse as any other value
                given[name] = value
    if "top_k" in body:
        given["top_k"] = integer(body.pop("top_k"), "top_k", 0)
    thinks = body.get("thinking", {"type": "disabled"}).get("type") != "disabled"
    if given and (options.drop_sampling or thinks):
        ignored.extend(given)
        return {}
    if "temperature" in given and given.pop("top_p", None) is not None:
        ignored.append("top_p")  # models since Claude 4.5 take one of the two
    return given


def _cache(document: Json, body: Json, options: Options, ignored: list[str]) -> None:
    """Cache a request that marks nothing to be cached, as OpenAI's API does by itself.

    A cache write costs more than plain input, so that it pays only where another turn will read it:
    where there are tools, or a turn of the assistant.
    """
    retention = document.get("prompt_cache_retention")
    settings = document.get("prompt_cache_options")
    settings = {} if settings is None else obj(settings, "prompt_cache_options")
    is_long = retention == "24h" or settings.get("ttl") == "30m"
    is_cached = (
        options.cache != "off"
        and settings.get("mode") != "explicit"
        and (options.cache == "always" or is_long or "tools" in body or len(body["messages"]) > 2)
        and not _is_marked(body)
    )
    if is_cached:
        body["cache_control"] = {"type": "ephemeral", **({"ttl": "1h"} if is_long else {})}
    if retention not in (None, "in_memory") and not (is_cached and retention == "24h"):
        ignored.append("prompt_cache_retention")
    if settings.get("ttl") is not None and not (is_cached and settings["ttl"] == "30m"):
        ignored.append("prompt_cache_options.ttl")


def _is_marked(body: Json) -> bool:
    """Whether the client marks what to cache."""
    holders = [body, *body.get("tools", ()), *_listed(body.get("system"))]
    for message in body["messages"]:
        for block in _listed(message["content"]):
            holders += (block, *_listed(block.get("content")))
    return any("cache_control" in holder for holder in holders)


def _listed(content: object) -> list[Json]:
    return content if isinstance(content, list) else []


def _stream(document: Json) -> tuple[bool, bool]:
    """Whether the answer is to be streamed, and whether with its usage."""
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
