"""The JSON documents and queries of the spend limits API. Without I/O.

They are those of Anthropic's Admin API (https://platform.claude.com/docs/en/api/admin/spend_limits)
and of its own gateway (https://code.claude.com/docs/en/claude-apps-gateway-spend-limits). Lists are
paged by ``after_id`` and ``before_id`` as in the gateway, or by ``page`` as in the SDKs.

Extensions of this proxy: ``"shared": true`` in a scope, ``period_to_date_spend`` of a shared limit,
which is the sum of all people in its scope, and rows in the report for periods without a limit.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from tornadoproxy import InvalidRequest
from tornadoproxy_budgets.caps import SCOPE_TYPES, Cap, Scope, ScopeType, check_name
from tornadoproxy_budgets.money import cents_text, parse_cents
from tornadoproxy_budgets.periods import PERIODS, Period, timestamp

if TYPE_CHECKING:
    from tornadoproxy_budgets.storage import Change

Document: TypeAlias = dict[str, Any]  # Any: JSON

MAX_LIMIT = 1000
MAX_USER_IDS = 100

_NUMBER = re.compile("[0-9]{1,9}")

_NAME_FIELDS: Mapping[ScopeType, str] = {"user": "user_id", "rbac_group": "rbac_group_id"}


class Wanted(NamedTuple):
    """The cap in a request to set one."""

    scope: Scope
    period: Period
    cents: int | None


@dataclass(frozen=True, slots=True)
class Query:
    """The fields of a query.

    :param fields: each name with its values; ``name[]`` is the same as ``name``.
    """

    fields: Mapping[str, Sequence[str]]

    def values(self, name: str) -> tuple[str, ...]:
        """Return all values of a field that may be repeated."""
        return (*self.fields.get(f"{name}[]", ()), *self.fields.get(name, ()))

    def value(self, name: str) -> str | None:
        """Return the value of a field; ``None`` if it is absent or empty.

        :raises InvalidRequest: the field is repeated.
        """
        values = self.values(name)
        if len(values) > 1:
            raise InvalidRequest(f"{name}: send it once.")
        return values[0] or None if values else None

    def limit(self, default: int = 20) -> int:
        """Return the most items of a page.

        :raises InvalidRequest: the field is not a number from 1 to 1000.
        """
        value = self.value("limit")
        if value is None:
            return default
        if not (_NUMBER.fullmatch(value) and 1 <= int(value) <= MAX_LIMIT):
            raise InvalidRequest(f"limit: must be a whole number from 1 to {MAX_LIMIT}.")
        return int(value)

    def periods(self) -> tuple[Period, ...]:
        """Return the periods in the query; all if it names none."""
        names = self.values("period")
        _one_of("period", names, PERIODS)
        return tuple(period for period in PERIODS if not names or period in names)

    def scope_types(self) -> tuple[ScopeType, ...]:
        """Return the scope types in the query; all if it names none."""
        names = self.values("scope_type")
        _one_of("scope_type", names, SCOPE_TYPES)
        return tuple(each for each in SCOPE_TYPES if not names or each in names)

    def user_ids(self) -> tuple[str, ...]:
        """Return the users in the query, sorted by name."""
        names = self.values("user_ids")
        if len(names) > MAX_USER_IDS:
            raise InvalidRequest(f"user_ids: send at most {MAX_USER_IDS}.")
        return tuple(sorted(set(names)))


def wanted(body: bytes) -> Wanted:
    """Return the cap in the body of a request to set one.

    :raises InvalidRequest: the body is invalid.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    # an ignored misspelt field would set another cap than the client meant
    _only("", document, ("scope", "amount", "period", "currency"))
    if document.get("currency", "USD") != "USD":
        raise InvalidRequest('currency: must be "USD".')
    period = document.get("period", "monthly")
    if period not in PERIODS:
        raise InvalidRequest(f"period: must be one of {', '.join(PERIODS)}.")
    return Wanted(_scope(document.get("scope")), period, _amount(document))


def cap_document(cap: Cap, spent: int | None = None) -> Document:
    """Return the document of a cap.

    :param spent: the sum spent under a shared cap, in nanos.
    """
    document: Document = {
        "type": "spend_limit",
        "id": cap.id,
        "scope": scope_document(cap.scope),
        "amount": _amount_text(cap),
        "currency": "USD",
        "period": cap.period,
        "is_enabled": True,
        "created_at": timestamp(cap.created),
        "updated_at": timestamp(cap.updated),
    }
    if spent is not None:
        document["period_to_date_spend"] = cents_text(spent)
    return document


def scope_document(scope: Scope) -> Document:
    """Return the document of a scope."""
    document: Document = {"type": scope.type}
    if scope.type in _NAME_FIELDS:
        document[_NAME_FIELDS[scope.type]] = scope.name
    if scope.shared:
        document["shared"] = True
    return document


def summary_document(
    principal: str, groups: Sequence[str], period: Period, cap: Cap | None, spent: int
) -> Document:
    """Return a row of the report: one person's cap and spending in a period."""
    return {
        "type": "spend_summary",
        "actor": {
            "type": "user_actor",
            "user_id": principal,
            "name": None,
            "email_address": None,
            "deleted": False,
        },
        "scope": {"type": "user", "user_id": principal},
        "source": None if cap is None else scope_document(cap.scope),
        "spend_limit_id": None if cap is None else cap.id,
        "amount": None if cap is None else _amount_text(cap),
        "currency": "USD",
        "period": period,
        "period_to_date_spend": cents_text(spent),
        "groups": list(groups),
    }


def change_document(change: Change) -> Document:
    """Return the document of an entry of the audit log."""
    return {
        "type": "spend_limit_audit_event",
        "id": change.id,
        "created_at": timestamp(change.time),
        "actor": change.actor,
        "action": change.action,
        "spend_limit_id": change.cap_id,
        "before": None if change.before is None else cap_document(change.before),
        "after": None if change.after is None else cap_document(change.after),
    }


def list_document(items: Sequence[Document], *, has_more: bool) -> Document:
    """Return the document of a page of items with ids."""
    return {
        "data": list(items),
        "has_more": has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
    }


def cursor(*key: str | int) -> str:
    """Return the cursor by which a client continues after the item with `key`."""
    return "page_" + base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def cursor_key(page: str, *types: type) -> list[Any]:  # Any: as `types` say
    """Return the key in a cursor.

    :param types: the types of the key's parts.
    :raises InvalidRequest: `page` is not such a cursor.
    """
    try:
        key = json.loads(base64.urlsafe_b64decode(page.removeprefix("page_")))
        if [type(part) for part in key] == list(types):
            return list(key)
    except (ValueError, TypeError, RecursionError, binascii.Error):
        pass
    raise InvalidRequest("page: must be next_page of the previous response, with the same query.")


def _scope(document: object) -> Scope:
    if not isinstance(document, dict):
        raise InvalidRequest('scope: must be an object such as {"type": "organization"}.')
    scope_type = document.get("type")
    if scope_type not in SCOPE_TYPES:
        raise InvalidRequest(f"scope.type: must be one of {', '.join(SCOPE_TYPES)}.")
    name_field = _NAME_FIELDS.get(scope_type)
    _only("scope.", document, ("type", "shared", *([name_field] if name_field else ())))
    shared = document.get("shared", False)
    if not isinstance(shared, bool) or (shared and scope_type == "user"):
        raise InvalidRequest("scope.shared: must be true or false, and cannot be set for a user.")
    name = document.get(name_field, "") if name_field else ""
    try:
        if name_field:
            check_name(name if isinstance(name, str) else "")
    except ValueError as error:
        raise InvalidRequest(f"scope.{name_field}: {error}.") from None
    return Scope(scope_type, name, shared)


def _amount(document: Mapping[str, object]) -> int | None:
    amount = document.get("amount", "")
    if amount is None:
        return None
    try:
        return parse_cents(amount if isinstance(amount, str) else "")
    except ValueError:
        raise InvalidRequest(
            'amount: must be whole cents in a string, such as "50000" for $500.00, or null for no '
            "limit."
        ) from None


def _amount_text(cap: Cap) -> str | None:
    return None if cap.cents is None else str(cap.cents)


def _only(where: str, document: Mapping[str, object], known: Sequence[str]) -> None:
    for name in document:
        if name not in known:
            raise InvalidRequest(
                f"{where}{name[:100]}: unknown field; the fields are {', '.join(known)}."
            )


def _one_of(name: str, values: Sequence[str], known: Sequence[str]) -> None:
    if not set(values) <= set(known):
        raise InvalidRequest(f"{name}: must be one of {', '.join(known)}.")
