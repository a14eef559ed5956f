"""The messages request that a request of either of OpenAI's APIs becomes.

The translations of each API read its own fields; what means the same in both is here: model, limit,
user, service tier, sampling, and the fields of Anthropic's API that a client adds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.caching import cache_request
from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import Json, integer, number, obj, refuse, text
from tornadoproxy.openai.thinking import Reasoning, add_reasoning
from tornadoproxy.openai.treatment import PASSED

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities
    from tornadoproxy.openai.options import Options
    from tornadoproxy.openai.tools import Offer
    from tornadoproxy.openai.turns import Conversation

UNKNOWN_MAX_TOKENS = 32_000
"""The limit of a response where neither the request nor the list of models names one."""

MAX_USER_ID = 256  # characters

SAMPLING = frozenset({"temperature", "top_p", "top_k"})
"""The fields that ``anthropic-version`` 2026-10-21 refuses."""

_ANY_MAX_TOKENS = 10_000_000  # above the maximum of any model
_METADATA = frozenset({"metadata", "safety_identifier", "service_tier", "user"})

# The upstream refuses these as a user's id. Both are tried on short texts only.
_EMAIL = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]")
_PHONE = re.compile(r"\+?(?:[\s().-]*\d){7,15}[\s().-]*")


def requested_model(document: Json) -> str:
    """Return the model that a client requests.

    :raises InvalidRequest: the request names none.
    """
    if document.get("model") is None:
        raise InvalidRequest("'model' is required.", param="model")
    name = text(document["model"], "model")
    if not name.strip():
        refuse("model", "must not be empty")
    return name


class TranslatedRequest(Struct, frozen=True, kw_only=True):
    """A messages request, and what the translation of its response needs.

    :param body: the request's body, JSON.
    :param stream: whether the response is streamed.
    :param samples: whether the body has a sampling parameter, which ``anthropic-version``
        2026-10-21 refuses.
    :param ignored: the names of dropped fields, each once.
    """

    body: bytes
    stream: bool
    samples: bool
    ignored: tuple[str, ...]

    def __repr__(self) -> str:
        # no content of requests
        return f"{type(self).__name__}(stream={self.stream}, ignored={self.ignored})"


class Wishes(NamedTuple):
    """What a request of either API asks for, beside its conversation and its tools.

    :param limits: the fields that can name the response's limit; the first that is there counts.
    :param reasoning: the reasoning that the client asks for, if any.
    :param output: the upstream's format for structured output, if any.
    :param stop: the upstream's stop sequences.
    :param stream: whether the response is streamed.
    """

    limits: tuple[str, ...]
    reasoning: Reasoning | None
    output: Json | None
    stream: bool
    stop: Sequence[str] = ()


def messages_request(
    document: Json,
    talk: Conversation,
    offer: Offer,
    wishes: Wishes,
    options: Options,
    able: Capabilities,
    ignored: list[str],
) -> Json:
    """Return the upstream's request.

    :param document: the client's request, for the fields that mean the same in both APIs.
    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: one of these fields is invalid.
    """
    body: Json = {
        "model": options.model(requested_model(document)),
        "max_tokens": max_tokens(document, wishes.limits, options, able),
        "messages": talk.messages,
    }
    if offer.tools:
        body["tools"] = offer.tools
    if offer.choice is not None:
        body["tool_choice"] = offer.choice
    if wishes.stop:
        body["stop_sequences"] = wishes.stop
    body |= _metadata(document, ignored)
    body |= _passed(document)
    if wishes.reasoning is not None:
        takes_budget = not talk.lacks_thinking
        add_reasoning(wishes.reasoning, body, able, ignored, takes_budget=takes_budget)
    if wishes.output is not None:
        body["output_config"] = {"format": wishes.output, **body.get("output_config", {})}
    system = talk.system + ([text_block(offer.instruction)] if offer.instruction else [])
    if system:
        body["system"] = _system(system)
    body |= _sampling(document, body, options, ignored)
    cache_request(document, body, options, ignored)
    if wishes.stream:
        body["stream"] = True
    return body


def max_tokens(document: Json, names: Iterable[str], options: Options, able: Capabilities) -> int:
    """Return the limit of a response, in tokens.

    :param names: the fields that can name it; the first that is there counts.
    """
    for name in names:
        if document.get(name) is not None:
            return integer(document[name], name, 1)
    limit = options.default_max_tokens or able.max_tokens or UNKNOWN_MAX_TOKENS
    thinking = document.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(budget, int):  # the upstream requires a limit above the budget
        limit = max(limit, 2 * budget)
    return min(limit, able.max_tokens or _ANY_MAX_TOKENS)


def _metadata(document: Json, ignored: list[str]) -> Json:
    """Return the upstream's ``metadata`` and ``service_tier``."""
    body: Json = {}
    if _METADATA.isdisjoint(document):
        return body
    user = _user(document)
    if user:
        body["metadata"] = {"user_id": user}
    tier = document.get("service_tier")
    if tier is not None and text(tier, "service_tier") == "standard_only":
        body["service_tier"] = tier
    elif tier not in (None, "auto", "default"):
        ignored.append("service_tier")
    return body


def _sampling(document: Json, body: Json, options: Options, ignored: list[str]) -> Json:
    """Return the sampling parameters, which go only to a model that does not think.

    :param body: the upstream's request; its ``top_k``, the client's own, is taken out.
    """
    given: Json = {}
    if SAMPLING.isdisjoint(document):
        return given
    for name, maximum in (("temperature", 2), ("top_p", 1)):
        if document.get(name) is not None:
            value = min(number(document[name], name, 0, maximum), 1)
            if value != 1:  # newer models refuse even this default of both
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


def _passed(document: Json) -> Json:
    passed = {
        name: value for name, value in document.items() if name in PASSED and value is not None
    }
    for name in ("thinking", "output_config"):
        if name in passed:
            obj(passed[name], name)
    return passed


def _system(blocks: list[Json]) -> str | list[Json]:
    if any("cache_control" in block for block in blocks):
        return blocks
    return "\n".join([block["text"] for block in blocks])


def _user(document: Json) -> str | None:
    given_metadata = document.get("metadata")
    given_metadata = {} if given_metadata is None else obj(given_metadata, "metadata")
    given = {
        "user": document.get("user"),
        "metadata.user_id": given_metadata.get("user_id"),
        "safety_identifier": document.get("safety_identifier"),
    }
    found = [text(value, param) for param, value in given.items() if value is not None]
    return next((_opaque(user) for user in found if user), None)


def _opaque(user: str) -> str:
    """Return `user`, or its SHA-256 if the upstream would refuse it."""
    if len(user) <= MAX_USER_ID and not _EMAIL.search(user) and not _PHONE.fullmatch(user):
        return user
    return hashlib.sha256(user.encode("utf-8", "surrogatepass")).hexdigest()
