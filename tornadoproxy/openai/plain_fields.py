"""The fields that mean the same in both APIs: limit, user, service tier, sampling."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tornadoproxy.openai.reading import Json, integer, number, obj, text

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities
    from tornadoproxy.openai.options import Options

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


def metadata(document: Json, ignored: list[str]) -> Json:
    """Return the upstream's ``metadata`` and ``service_tier``."""
    body: Json = {}
    if _METADATA.isdisjoint(document):
        return body
    user = _user(document, ignored)
    if user:
        body["metadata"] = {"user_id": user}
    tier = document.get("service_tier")
    if tier is not None and text(tier, "service_tier") == "standard_only":
        body["service_tier"] = tier
    elif tier not in (None, "auto", "default"):
        ignored.append("service_tier")
    return body


def sampling(document: Json, body: Json, options: Options, ignored: list[str]) -> Json:
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


def _user(document: Json, ignored: list[str]) -> str | None:
    given_metadata = document.get("metadata")
    given_metadata = {} if given_metadata is None else obj(given_metadata, "metadata")
    if given_metadata.keys() - {"user_id"}:
        ignored.append("metadata")
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
