"""The reports of the Admin API: their queries and documents. Without I/O.

They are those of Anthropic's Admin API: https://platform.claude.com/docs/en/api/beta/organization,
``analytics``, ``usage_report`` and ``cost_report``. What the ledger does not record, such as
workspaces, service tiers and cost by type of token, can be asked for and is ``null``; a filter for
it matches nothing. ``unpriced_requests`` is an extension: requests whose cost is unknown.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from tornadoproxy import InvalidRequest, admin
from tornadoproxy_ledger.relations import USED
from tornadoproxy_ledger.reports import DIMENSIONS, Counts, Key, Selection
from tornadoproxy_ledger.summed import DAY, HOUR

WIDTHS = {"1m": 60, "1h": HOUR, "1d": DAY}

MAX_RANGE = 31 * DAY  # seconds
MAX_GROUPS = 100  # of a bucket, as in Anthropic's
MAX_GROUPED = 5  # dimensions

_COST = ("requests", "unpriced", "cost_nanos")
_USAGE = ("requests", *USED)

NANOS_PER_CENT = 10_000_000

# the names of what the ledger does not record, in all reports alike
_ABSENT = ("context_window", "inference_geo", "speed")
_TAGGED = ("claude_tag_category", "claude_tag_user_id", "slack_channel_id")
_MANAGED = ("agent_id", "deployment_id", "environment_id", "session_id", "user_profile_id")
_PLACES = ("api_key_id", "organization_id", "service_tier", "workspace_id")


@dataclass(frozen=True, slots=True)
class Form:
    """The form of one report.

    :param path: below ``/v1/organizations/``.
    :param costs: whether it shows costs, and not tokens.
    :param dimensions: what it can be grouped by: each name with that of the ledger, ``None`` if the
        ledger does not record it.
    :param filters: the fields of its query that restrict it, likewise.
    :param width_field: the field of the query with the width of a bucket.
    :param person: whether each row is a person's.
    :param limits: for each width, how many buckets a page has by default and at most; without any,
        a page has rows, ranked by a metric.
    """

    path: str
    costs: bool
    dimensions: Mapping[str, str | None]
    filters: Mapping[str, str | None]
    width_field: str = "bucket_width"
    person: bool = False
    limits: Mapping[str, tuple[int, int]] | None = None


def _forms() -> tuple[Form, ...]:
    absent = dict.fromkeys((*_ABSENT, *_TAGGED))
    recorded = {"model": "model", "product": "product", "rbac_group_id": "group"}
    by_type = dict.fromkeys(("cost_type", "token_type"))
    filters = {
        **{f"{name}s": None for name in (*_ABSENT, *_TAGGED) if name != "claude_tag_category"},
        "claude_tag_categories": None,
        "models": "model",
        "products": "product",
        "rbac_group_ids": "group",
    }
    full = dict.fromkeys((*_PLACES, *_MANAGED))
    actors = {"actor": "principal", "actor_type": "actor_type"}
    full_filters = {
        **filters,
        **{f"{name}s": None for name in full},
        "actor_ids": "principal",
        "actor_types": "actor_type",
    }
    users = {**filters, "user_ids": "principal"}
    older = dict.fromkeys(("api_key_id", "service_account_id", "service_tier", "workspace_id"))
    of_buckets = {"1d": (7, 31), "1h": (24, 168), "1m": (60, 256)}
    found = []
    for costs, name in ((False, "usage"), (True, "cost")):
        more = by_type if costs else {}
        found += [
            Form(
                f"analytics/{name}",
                costs,
                {**absent, **recorded, **full, **actors, **more},
                full_filters,
                width_field="time_bucket_width",
            ),
            Form(
                f"analytics/{name}_report",
                costs,
                {**absent, **recorded, **more},
                users,
                limits=of_buckets,
            ),
            Form(
                f"analytics/user_{name}_report",
                costs,
                {**absent, **recorded, **more},
                users,
                person=True,
            ),
        ]
    usage = Form(
        "usage_report/messages",
        costs=False,
        dimensions={
            **older,
            **dict.fromkeys(_ABSENT),
            "model": "model",
            "account_id": "principal",
        },
        filters={
            **{f"{name}s": None for name in (*older, *_ABSENT)},
            "context_window": None,
            "models": "model",
            "account_ids": "principal",
        },
        limits={**of_buckets, "1m": (60, 1440)},
    )
    cost = Form(
        "cost_report",
        costs=True,
        dimensions={"workspace_id": None, "description": "model"},
        filters={"workspace_ids": None},
        limits={"1d": (7, 31)},
    )
    return (*found, usage, cost)


FORMS = _forms()


@dataclass(frozen=True, slots=True)
class Asked:
    """What a query asks for.

    :param selection: the rows of the ledger; ``None`` if nothing can match.
    :param grouped: the names of the dimensions that the documents show.
    :param since: when the range begins, at the beginning of a bucket or an hour.
    :param ending_at: when the range ends.
    :param width: of a bucket in seconds; ``None`` is the whole range.
    """

    form: Form
    selection: Selection | None
    since: int
    ending_at: int
    width: int | None
    grouped: tuple[str, ...]


def asked(form: Form, query: admin.Query, ending_at: int | None = None) -> Asked:
    """Return what a query asks for.

    :param ending_at: when the range ends, if an earlier page has decided that.
    :raises InvalidRequest: a field is invalid.
    """
    since = query.time("starting_at")
    if since is None or since < 0:
        raise InvalidRequest(
            "starting_at: must be a timestamp since 1970, such as 2026-11-30T00:00:00Z."
        )
    widths = WIDTHS if form.limits is None else {name: WIDTHS[name] for name in form.limits}
    name = query.value(form.width_field, tuple(widths)) or (None if form.limits is None else "1d")
    width = None if name is None else widths[name]
    until = _end(form, query, since, width)
    if ending_at is not None:
        if not since < ending_at <= time.time() + 2 * DAY:
            raise InvalidRequest("page: must be next_page of the previous response.")
        until = ending_at
    grouped = query.values("group_by", tuple(form.dimensions))
    if len(set(grouped) - {"cost_type", "token_type"}) > MAX_GROUPED and form.limits is None:
        raise InvalidRequest(f"group_by: send at most {MAX_GROUPED}.")
    start = int(since - since % (width or HOUR))
    by = {dimension for each in grouped if (dimension := form.dimensions[each]) is not None}
    if form.person:
        by.add("principal")
    only = _filters(form, query)
    selection = None
    if only is not None:
        counts = _COST if form.costs else _USAGE
        selection = Selection(start, until, width, frozenset(by), only, counts=counts)
    return Asked(form, selection, start, until, width, grouped)


def _end(form: Form, query: admin.Query, since: float, width: int | None) -> int:
    end = query.time("ending_at")
    if end is None:
        if form.limits is None and width is not None:
            raise InvalidRequest(f"ending_at: missing; it is required with {form.width_field}.")
        end = min(time.time(), since + MAX_RANGE)
    elif end <= since:
        raise InvalidRequest("ending_at: must be after starting_at.")
    # the future has no usage
    until = ceil(min(end, time.time() + DAY))
    if form.limits is None:
        if until - since > (DAY if width == WIDTHS["1m"] else MAX_RANGE):
            raise InvalidRequest(
                "ending_at: the range may span at most 31 days, and 24 hours with buckets of 1m."
            )
        if width is None:
            # a report without buckets covers whole hours
            until -= until % HOUR
    return until


def _filters(form: Form, query: admin.Query) -> dict[str, frozenset[str]] | None:
    """Return the values that count by dimension; ``None`` if nothing can match."""
    only = {}
    for field, dimension in form.filters.items():
        values = frozenset(query.values(field))
        if not values:
            continue
        if dimension is not None:
            only[dimension] = values
        # these ask for what has no such value, as nothing has here
        elif not values & {"", "not_available"}:
            return None
    return only


# Documents


def dimensions_of(each: Asked, key: Key) -> admin.Document:
    """Return the values of the dimensions of a report, ``None`` for those not asked for."""
    named = dict(zip(DIMENSIONS, key, strict=True))
    document: admin.Document = dict.fromkeys(each.form.dimensions)
    for name in each.grouped:
        dimension = each.form.dimensions[name]
        value = None if dimension is None else named[dimension]
        document[name] = value if name != "actor" or value is None else actor(value)
    if "description" in document:
        model = document["description"]
        document |= {
            **dict.fromkeys(("context_window", "inference_geo", "service_tier", "token_type")),
            "model": model,
            "cost_type": None if model is None else "tokens",
            "description": None if model is None else f"{model} usage",
        }
    return document


def actor(principal: str) -> admin.Document:
    """Return a person as an actor."""
    return {
        "type": "user_actor",
        "user_id": principal,
        "name": principal,
        "email_address": principal if "@" in principal else None,
        "deleted": False,
    }


def figures(asked: Asked, counts: Counts) -> admin.Document:
    """Return the usage or cost of a row."""
    if asked.form.costs:
        cents = cents_text(counts.cost_nanos)
        return {
            "currency": "USD",
            "amount": cents,
            "list_amount": cents,
            # it has no part in a component, as in Anthropic's
            "requests": None if {"cost_type", "token_type"} & {*asked.grouped} else counts.requests,
            "unpriced_requests": counts.unpriced,
        }
    one_hour = counts.cache_creation_1h_input_tokens
    return {
        "uncached_input_tokens": counts.input_tokens,
        "cache_creation": {
            "ephemeral_1h_input_tokens": one_hour,
            "ephemeral_5m_input_tokens": counts.cache_creation_input_tokens - one_hour,
        },
        "cache_read_input_tokens": counts.cache_read_input_tokens,
        "output_tokens": counts.output_tokens,
        "server_tool_use": {"web_search_requests": counts.web_search_requests},
        "requests": counts.requests,
        "total_tokens": counts.total_tokens,
    }


def cents_text(nanos: int) -> str:
    """Return fractional cents: ``"12050.5"``."""
    whole, fraction = divmod(nanos, NANOS_PER_CENT)
    return f"{whole}.{fraction:07}".rstrip("0").rstrip(".")
