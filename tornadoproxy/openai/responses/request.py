"""The translation of a request of the Responses API into a messages request.

Sources: https://platform.openai.com/docs/api-reference/responses/create and
https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.messages_request import (
    SAMPLING,
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
from tornadoproxy.openai.responses import conversation, fields, tools
from tornadoproxy.openai.responses.echo import echo
from tornadoproxy.openai.responses.items import Listed, continued, own_items, resolved
from tornadoproxy.openai.responses.translation import Translation
from tornadoproxy.openai.schema import FORMATS, Grammar, output_format
from tornadoproxy.openai.thinking import Reasoning
from tornadoproxy.openai.tools import Offer, offer_of_called

_NEW_MODEL = Capabilities()
_LIMITS = ("max_output_tokens",)
_SUMMARIES = ("auto", "concise", "detailed")
_VERBOSITIES = ("low", "medium", "high")

# The fields whose translation depends on the model's capabilities.
_BY_CAPABILITIES = frozenset({"previous_response_id", "reasoning", "text", "tool_choice", "tools"})

# The items whose translation does; what is stored may be any of them.
_ITEMS_BY_CAPABILITIES = (
    "additional_tools",
    "configuration_update",
    "item_reference",
    "tool_search_output",
)

_TRIGGER: Json = {"type": "compaction_trigger"}

# The fields of a request for compaction that the request for the summary has as well.
_COMPACTED = (
    "client_metadata",
    "instructions",
    "model",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
)


class Needs(NamedTuple):
    """What has to be looked up before a request is translated.

    :param previous: the id of the response that it continues.
    :param items: the ids of the items that it refers to.
    :param capabilities: whether the translation depends on those of its model.
    """

    previous: str | None
    items: tuple[str, ...]
    capabilities: bool


class _Settings(NamedTuple):
    """What items say beside the conversation.

    :param tools: the tools in them, each with its place in the request.
    :param updates: the last effort and the last format, each with its place.
    :param compacts: whether the last item asks for a summary.
    """

    tools: list[tuple[object, str]]
    updates: dict[str, tuple[object, str]]
    compacts: bool


def needs(document: Json, options: Options) -> Needs:
    """Return what has to be looked up before a request is translated.

    :raises InvalidRequest: an item is not one, or a reference is not a string.
    """
    previous = document.get("previous_response_id")
    if previous is not None:
        text(previous, "previous_response_id")
    has_limit = document.get("max_output_tokens") is not None
    capabilities = not has_limit and options.default_max_tokens is None
    for name in _BY_CAPABILITIES.intersection(document):
        capabilities = capabilities or document[name] is not None
    items = []
    for item, kind, param in own_items(document):
        if kind == "item_reference":
            items.append(text(item.get("id"), f"{param}.id"))
        if kind in _ITEMS_BY_CAPABILITIES or item.get("role") in ("system", "developer"):
            capabilities = True
    return Needs(previous, tuple(items), capabilities)


def compaction_request(
    document: Json, earlier: Sequence[Json] | None = None, *, has_store: bool = False
) -> Json:
    """Return the request for a summary that a request for compaction becomes.

    :param document: the body of ``POST /responses/compact``.
    :param earlier: the items of the responses that it continues, which are compacted, too; ``None``
        if they are not known.
    :param has_store: whether the gateway stores responses.
    :raises InvalidRequest: it has no input, or continues a response that is not known.
    """
    own = [item for item, _, _ in own_items(document)]
    kept = {name: document[name] for name in _COMPACTED if name in document}
    if not own and document.get("previous_response_id") is None:
        refuse("input", "or previous_response_id is required")
    before = [item for item, _, _ in continued(document, earlier, has_store=has_store)]
    return {**kept, "store": False, "input": [*before, *own, _TRIGGER]}


def translate_request(
    document: Json,
    *,
    options: Options | None = None,
    capabilities: Capabilities | None = None,
    earlier: Sequence[Json] | None = None,
    items: Mapping[str, Json] | None = None,
    has_store: bool = False,
    web_search: bool = True,
    is_codex: bool = False,
) -> Translation:
    """Translate a request.

    It is validated only as far as it is translated; the upstream validates the rest. For the
    treatment of each field, item and tool see `fields`, `items` and `tools`.

    :param document: the request's body; see `reading.parse`. It stays unchanged.
    :param capabilities: the model's capabilities, if known.
    :param earlier: the items of the stored responses that it continues, oldest first; ``None`` if
        they are not known.
    :param items: the stored items by their ids, as far as the request refers to them.
    :param has_store: whether the gateway stores responses.
    :param web_search: whether the upstream searches the web.
    :param is_codex: whether the client is known to be Codex.
    :raises InvalidRequest: the request is invalid; the error's ``param`` names the place.
    :raises NotFound: it refers to an item that is not stored.
    """
    options = options or Options()
    able = capabilities or _NEW_MODEL
    if document.get("max_tool_calls") is not None:
        integer(document["max_tool_calls"], "max_tool_calls", 1)
    ignored = fields.ignored(document)
    if not fields.REFUSED.isdisjoint(document):
        fields.refuse_impossible(document)
    if document.get("input") is None and document.get("previous_response_id") is None:
        raise InvalidRequest("'input' is required.", param="input")
    own = resolved(own_items(document), items or {}, has_store=has_store)
    listed = continued(document, earlier, has_store=has_store) + own
    if not listed:
        refuse("input", "must not be empty")
    settings = _settings(listed)
    grammar = Grammar()
    # before the tools, which get the limits that the format leaves
    output, wanted_format, sentences = _format(document, settings, able, grammar, ignored)
    offer, origins = tools.translate(
        document, settings.tools, able, grammar, ignored, web_search=web_search
    )
    instructions = document.get("instructions")
    instructions = None if instructions is None else text(instructions, "instructions")
    talk = conversation.translate(
        listed, able, origins, ignored, instructions, prefill=options.prefill
    )
    talk.system += sentences
    if offer.tools and settings.compacts:
        offer = Offer(offer.tools, {"type": "none"})
    elif talk.called and not offer.tools:
        offer = offer_of_called(talk.called)
    reasoning, wanted_reasoning = _reasoning(document, settings)
    stream = document.get("stream")
    stream = stream is not None and boolean(stream, "stream")
    wishes = Wishes(_LIMITS, reasoning, output, stream=stream)
    if isinstance(document.get("context_management"), list):  # that of OpenAI, not of Anthropic
        document = {**document, "context_management": None}
    if settings.compacts:  # without the tools' choice, the cache is not read again
        options = replace(options, cache="off")
    body = messages_request(document, talk, offer, wishes, options, able, ignored)
    store = document.get("store")
    kept = (store is None or boolean(store, "store")) and has_store
    return Translation(
        body=dump(body),
        stream=stream,
        samples=not SAMPLING.isdisjoint(body),
        ignored=options.listed(ignored),
        origins=origins,
        echo=echo(document, wanted_reasoning, wanted_format, kept=kept),
        kept=kept,
        previous=document.get("previous_response_id"),
        input=tuple([each.item for each in own]) if kept or settings.compacts else (),
        for_codex=is_codex or _is_codex(document),
        compacts=settings.compacts,
    )


def _settings(listed: Sequence[Listed]) -> _Settings:
    found = _Settings([], {}, listed[-1].kind == "compaction_trigger")
    for item, kind, param in listed:
        if kind == "message":
            continue
        if kind == "additional_tools" or (
            kind == "tool_search_output" and item.get("tools") is not None
        ):
            where = f"{param}.tools"
            found.tools.extend(
                (tool, f"{where}[{index}]")
                for index, tool in enumerate(array(item.get("tools"), where))
            )
        elif kind == "configuration_update":
            for name, key in (("reasoning", "effort"), ("text", "format")):
                if item.get(name) is not None:
                    given = obj(item[name], f"{param}.{name}").get(key)
                    if given is not None:
                        found.updates[key] = (given, f"{param}.{name}.{key}")
    return found


def _reasoning(document: Json, settings: _Settings) -> tuple[Reasoning | None, Json]:
    """Return the reasoning that is wanted, and the same as the response repeats it."""
    given = document.get("reasoning")
    if given is None and not settings.updates:
        return None, {"effort": None, "summary": None}
    given = {} if given is None else obj(given, "reasoning")
    effort, param = settings.updates.get("effort", (given.get("effort"), "reasoning.effort"))
    name = "generate_summary" if given.get("summary") is None else "summary"  # the older name
    summary = given.get(name)
    if summary is not None:
        one_of(summary, f"reasoning.{name}", _SUMMARIES)
    echoed = {"effort": effort, "summary": summary}
    if effort is None and summary is None:
        return None, echoed
    return Reasoning(effort, param, is_shown=summary is not None), echoed


def _format(
    document: Json,
    settings: _Settings,
    able: Capabilities,
    grammar: Grammar,
    ignored: list[str],
) -> tuple[Json | None, Json, list[Json]]:
    """Return the upstream's format, the client's, and what the system prompt says instead."""
    given = document.get("text")
    if given is None and not settings.updates:
        return None, {}, []
    given = {} if given is None else obj(given, "text")
    if given.get("verbosity") is not None:
        one_of(given["verbosity"], "text.verbosity", _VERBOSITIES)
    wanted, param = settings.updates.get("format", (given.get("format"), "text.format"))
    if wanted is None or settings.compacts:  # a summary is plain text
        return None, {}, []
    wanted = obj(wanted, param)
    kind = one_of(wanted.get("type"), f"{param}.type", FORMATS)
    if kind == "json_schema":
        text(wanted.get("name"), f"{param}.name")
    sentences: list[Json] = []
    output = output_format(kind, wanted, param, sentences, able, grammar, ignored)
    return output, {"format": wanted}, sentences


def _is_codex(document: Json) -> bool:
    known = document.get("client_metadata")
    return isinstance(known, dict) and any(name.startswith("x-codex-") for name in known)
