"""What usage is summed from, in SQL: rows, calls to other models, and earlier sums.

Each relation has the same columns: ``time``, those that sums are grouped by, and those of `COUNTS`.
A request on several models has its own counts in the relation of rows, without the cost of the
calls to other models, which have a relation of their own: ``other_call`` is 1 there, and
``requests`` is 1 for a model that is not the request's own. So a request counts once for each of
its models if usage is grouped by model, and otherwise once, see `sums_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_OF_REQUESTS = ("requests", "errors", "unpriced", "partial")
_TOKENS = (
    "input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens",
    "cache_creation_1h_input_tokens",
)  # fmt: skip
USED = (*_TOKENS, "web_search_requests")
COUNTS = (*_OF_REQUESTS, "priced", *USED, "cost_nanos")

_ERROR = "outcome IN ('denied', 'failed', 'drained') OR status >= 400"
_USED = "input_tokens IS NOT NULL OR output_tokens IS NOT NULL OR other_models IS NOT NULL"
# Responses that reported usage, and requests that were abandoned before they could. Listing models
# costs nothing.
_UNPRICED = f"""cost_nanos IS NULL AND (
    {_USED} OR partial <> 0 OR model IS NOT NULL
    OR outcome IN ('abandoned', 'drained') AND upstream_time IS NOT NULL
    AND route IN ('/v1/messages', '/openai/v1/chat/completions', '/openai/v1/responses',
                  '/openai/v1/responses/compact')
)"""


@dataclass(frozen=True, slots=True)
class Functions:
    """What the engines write differently, as patterns of `str.format`."""

    objects: str  # the table of a JSON array's objects
    text: str  # a text of an object
    number: str  # a number of an object
    differs: str  # whether two values differ, one of which may be NULL
    hint: str  # the index to use
    bucket: str  # the number of the bucket of so many seconds that `time` is in


FUNCTIONS = {
    "sqlite": Functions(
        objects="json_each({}) AS {}",
        text="json_extract({}.value, '$.{}')",
        number="json_extract({}.value, '$.{}')",
        differs="IS NOT",
        hint="INDEXED BY requests_of_several_models",
        bucket="CAST(time / {} AS INTEGER)",
    ),
    "postgresql": Functions(
        objects="json_array_elements(CAST({} AS json)) AS {}(value)",
        text="({}.value ->> '{}')",
        number="CAST({}.value ->> '{}' AS BIGINT)",
        differs="IS DISTINCT FROM",
        hint="",
        bucket="CAST(floor(time / {}) AS BIGINT)",
    ),
}


def rows(functions: Functions) -> Sequence[str]:
    """Return the relations of rows and of their calls to other models, ``:since`` to ``:until``."""
    other_models = functions.objects.format("other_models", "part")
    model = functions.text.format("part", "model")

    def sum_of(name: str) -> str:
        return f"coalesce(sum({functions.number.format('part', name)}), 0)"

    def flag(condition: str) -> str:
        return f"CASE WHEN {condition} THEN 1 ELSE 0 END"

    in_range = "time >= :since AND time < :until"
    of_both = f"""time, principal, "groups", {flag("session_id IS NOT NULL")} AS claude_code"""
    priced = f"{flag('cost_nanos IS NOT NULL')} AS priced"
    other = f"{model} {functions.differs} model"
    own = f"""
        SELECT {of_both}, model, {flag(_USED)} AS used, 0 AS other_call, 1 AS requests,
            {flag(_ERROR)} AS errors, {flag(_UNPRICED)} AS unpriced,
            {flag("partial <> 0")} AS partial, {priced}, {", ".join(_TOKENS)}, web_search_requests,
            CASE WHEN other_models IS NULL THEN cost_nanos ELSE
                cost_nanos - (SELECT {sum_of("cost_nanos")} FROM {other_models})
            END AS cost_nanos
        FROM requests WHERE {in_range}
    """  # noqa: S608  # constants; values are bound
    tokens = ", ".join(f"{sum_of(name)} AS {name}" for name in _TOKENS)
    others = f"""
        SELECT {of_both}, {model} AS model, 1 AS used, 1 AS other_call, {flag(other)} AS requests,
            {flag(f"{other} AND ({_ERROR})")} AS errors,
            {flag(f"{other} AND cost_nanos IS NULL")} AS unpriced,
            {flag(f"{other} AND partial <> 0")} AS partial, {priced}, {tokens},
            0 AS web_search_requests,
            CASE WHEN cost_nanos IS NULL THEN 0 ELSE {sum_of("cost_nanos")} END AS cost_nanos
        FROM requests {functions.hint}, {other_models}
        WHERE other_models IS NOT NULL AND {in_range} GROUP BY requests.id, {model}
    """  # noqa: S608  # constants; values are bound
    return own, others


def sums(kind: str, seconds: int) -> str:
    """Return the relation of earlier sums of a kind, which begin in ``:since`` to ``:until``."""
    return f"""
        SELECT start AS time, principal, "groups", model, claude_code, used, other_call,
            {", ".join(COUNTS)}
        FROM usage_sums WHERE kind = '{kind}' AND seconds = {seconds}
            AND start >= :since AND start < :until
    """  # noqa: S608  # constants; values are bound


def sums_of(
    relation: str,
    keys: Sequence[str],
    *,
    by_model: bool,
    where: Iterable[str] = (),
    counts: Collection[str] = COUNTS,
) -> str:
    """Return the statement that sums a relation: the keys, and the sum of each of `COUNTS`.

    :param keys: expressions of its columns, which are grouped by.
    :param by_model: whether a request counts for each of its models.
    :param where: conditions on its columns.
    :param counts: those of `COUNTS` that are summed; the others are 0.
    """

    def summed(name: str) -> str:
        if name not in counts:
            return "0"
        once = "" if by_model or name not in _OF_REQUESTS else " * (1 - other_call)"
        # the engines have different types for a sum of whole numbers
        return f"CAST(coalesce(sum({name}{once}), 0) AS BIGINT)"

    # SQLite would sort all rows even by a constant
    positions = ", ".join(str(number) for number in range(1, len(keys) + 1))
    grouping = f"GROUP BY {positions}" if keys else "HAVING count(*) > 0"
    conditions = " AND ".join(["TRUE", *where])
    return (
        f"SELECT {', '.join([*keys, *map(summed, COUNTS)])} FROM ({relation}) AS parts "  # noqa: S608  # as above
        f"WHERE {conditions} {grouping}"
    )
