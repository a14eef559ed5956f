"""The JSON documents and queries of the spend limits API. Without I/O.

They are those of Anthropic's Admin API (https://platform.claude.com/docs/en/api/admin/spend_limits)
and of its own gateway (https://code.claude.com/docs/en/claude-apps-gateway-spend-limits). Lists are
paged by ``after_id`` and ``before_id`` as in the gateway, or by ``page`` as in the SDKs.

Extensions of this proxy: ``"shared": true`` in a scope, ``period_to_date_spend`` of a shared limit,
which is the sum of all people in its scope, and rows in the report for periods without a limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import InvalidRequest, admin
from tornadoproxy_budgets.caps import SCOPE_TYPES, Cap, Scope, ScopeType, check_name
from tornadoproxy_budgets.money import cents_text, parse_cents
from tornadoproxy_budgets.periods import PERIODS, Period

if TYPE_CHECKING:
    from tornadoproxy_budgets.storage import Change

MAX_USER_IDS = 100

_NAME_FIELDS: Mapping[ScopeType, str] = {"user": "user_id", "rbac_group": "rbac_group_id"}


class Wanted(NamedTuple):
    """The cap in a request to set one."""

    scope: Scope
    period: Period
    cents: int | None


def periods(query: admin.Query) -> tuple[Period, ...]:
    """Return the periods in a query; all if it names none."""
    names = query.values("period", PERIODS)
    return tuple(period for period in PERIODS if not names or period in names)


def scope_types(query: admin.Query) -> tuple[ScopeType, ...]:
    """Return the scope types in a query; all if it names none."""
    names = query.values("scope_type", SCOPE_TYPES)
    return tuple(each for each in SCOPE_TYPES if not names or each in names)


def user_ids(query: admin.Query) -> tuple[str, ...]:
    """Return the users in a query, sorted by name."""
    names = query.values("user_ids")
    if len(names) > MAX_USER_IDS:
        raise InvalidRequest(f"user_ids: send at most {MAX_USER_IDS}.")
    return tuple(sorted(set(names)))


def wanted(request: admin.Request) -> Wanted:
    """Return the cap in a request to set one.

    :raises InvalidRequest: its body is invalid.
    """
    document = request.document("scope", "amount", "period", "currency")
    if document.get("currency", "USD") != "USD":
        raise InvalidRequest('currency: must be "USD".')
    cents = None if document.get("amount", "") is None else amount(document)
    return Wanted(_scope(document.get("scope")), period(document), cents)


def period(document: Mapping[str, object], default: Period = "monthly") -> Period:
    """Return the period in a body; `default` if it names none.

    :raises InvalidRequest: it is none.
    """
    found = document.get("period")
    for known in PERIODS:
        if found == known:
            return known
    if found is None:
        return default
    raise InvalidRequest(f"period: must be one of {', '.join(PERIODS)}.")


def amount(document: Mapping[str, object], field: str = "amount") -> int:
    """Return the cents in a field of a body.

    :raises InvalidRequest: it is none.
    """
    value = document.get(field, "")
    try:
        return parse_cents(value if isinstance(value, str) else "")
    except ValueError:
        raise InvalidRequest(
            f'{field}: must be whole cents in a string, such as "50000" for $500.00, or null for '
            "no limit."
        ) from None


def cap_document(cap: Cap, spent: int | None = None) -> admin.Document:
    """Return the document of a cap.

    :param spent: the sum spent under a shared cap, in nanos.
    """
    document: admin.Document = {
        "type": "spend_limit",
        "id": cap.id,
        "scope": scope_document(cap.scope),
        "amount": _amount_text(cap),
        "currency": "USD",
        "period": cap.period,
        "is_enabled": True,
        "created_at": admin.timestamp(cap.created),
        "updated_at": admin.timestamp(cap.updated),
    }
    if spent is not None:
        document["period_to_date_spend"] = cents_text(spent)
    return document


def scope_document(scope: Scope) -> admin.Document:
    """Return the document of a scope."""
    document: admin.Document = {"type": scope.type}
    if scope.type in _NAME_FIELDS:
        document[_NAME_FIELDS[scope.type]] = scope.name
    if scope.shared:
        document["shared"] = True
    return document


def summary_document(
    principal: str, groups: Sequence[str], period: Period, cap: Cap | None, spent: int
) -> admin.Document:
    """Return a row of the report: one person's cap and spending in a period."""
    return {
        "type": "spend_summary",
        "actor": actor(principal),
        "scope": {"type": "user", "user_id": principal},
        "source": None if cap is None else scope_document(cap.scope),
        "spend_limit_id": None if cap is None else cap.id or None,
        "amount": None if cap is None else _amount_text(cap),
        "currency": "USD",
        "period": period,
        "period_to_date_spend": cents_text(spent),
        "groups": list(groups),
    }


def actor(principal: str) -> admin.Document:
    """Return the document of a person."""
    return {
        "type": "user_actor",
        "user_id": principal,
        "name": None,
        "email_address": None,
        "deleted": False,
    }


def change_document(change: Change) -> admin.Document:
    """Return the document of an entry of the audit log."""
    return {
        "type": "spend_limit_audit_event",
        "id": change.id,
        "created_at": admin.timestamp(change.time),
        "actor": change.actor,
        "action": change.action,
        "spend_limit_id": change.cap_id,
        "before": None if change.before is None else cap_document(change.before),
        "after": None if change.after is None else cap_document(change.after),
    }


def event(change: Change) -> admin.Event:
    """Return an entry of the audit log as one of the audit trail of the Admin API."""
    return admin.Event(
        id=change.id,
        time=change.time,
        actor=change.actor,
        action=change.action,
        type="spend_limit",
        subject=change.cap_id,
        before=None if change.before is None else cap_document(change.before),
        after=None if change.after is None else cap_document(change.after),
    )


def _scope(document: object) -> Scope:
    if not isinstance(document, dict):
        raise InvalidRequest('scope: must be an object such as {"type": "organization"}.')
    scope_type = document.get("type")
    if scope_type not in SCOPE_TYPES:
        raise InvalidRequest(f"scope.type: must be one of {', '.join(SCOPE_TYPES)}.")
    name_field = _NAME_FIELDS.get(scope_type)
    admin.only("scope.", document, ("type", "shared", *([name_field] if name_field else ())))
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


def _amount_text(cap: Cap) -> str | None:
    return None if cap.cents is None else str(cap.cents)
