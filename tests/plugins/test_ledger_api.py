"""The usage and cost reports of the Admin API.

Sources: https://platform.claude.com/docs/en/manage-claude/usage-cost-analytics-api and
https://platform.claude.com/docs/en/api/beta/organization/usage_report/retrieve_messages.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import pytest
from admin_api import AdminApi
from admin_sdk import Sdk
from postgres import sqlite_only
from scene import Scene
from test_ledger import write
from tornadoproxy_ledger import report_forms, reports

from tornadoproxy import (
    DatabaseLocation,
    ModelUsage,
    Outcome,
    RequestRecord,
    Usage,
    tables,
)
from tornadoproxy.testing import RawResponse, request_record

pytest_plugins = ("admin_sdk",)

SONNET, HAIKU = "claude-sonnet-5-5", "claude-haiku-4-5"
HOUR, DAY = 3600, 86_400
MONDAY = 1_741_564_800  # 2025-03-10T00:00:00Z
CENT = 10_000_000


def at(hours: float) -> str:
    """Return a time so many hours after the Monday began."""
    return datetime.fromtimestamp(MONDAY + hours * HOUR, UTC).isoformat()


def used(hours: float, principal: str | None = "ada", **changes: Any) -> RequestRecord:
    """The record of a request that cost a cent."""
    fields = {"usage": Usage(10, 5), "cost": CENT, "groups": ("team",), **changes}
    return request_record(time=MONDAY + hours * HOUR, principal=principal, **fields)


ADVISED = (ModelUsage(HAIKU, Usage(7, 3), 2_500_000), ModelUsage(SONNET, Usage(1, 1), 500_000))

RECORDS = (
    used(1, usage=Usage(100, 20, 300, 50, 10, 2, 1), cost=4 * CENT + 5, session_id="s"),
    used(2, "bob@example.org", groups=("team", "leads"), model=HAIKU),
    used(2.5, groups=(), usage=Usage(10, 5, others=ADVISED)),
    used(25, cost=None),
    used(26, None, groups=()),
    # these used nothing
    used(3, usage=Usage(), cost=None, status=429, outcome=Outcome.DENIED),
    used(4, usage=Usage(), cost=None, model=None, route="/v1/models"),
)


class Reports(AdminApi):
    """The reports of a proxy that the first request starts."""

    url = ""

    async def send(self, *given: Any, **more: Any) -> RawResponse:
        await self.started()
        return await super().send(*given, **more)

    async def started(self) -> str:
        """Return the proxy's URL."""
        self.url = self.url or (await self.start()).url
        return self.url

    async def get(self, path: str, **query: Any) -> Any:
        names = {
            f"{name}[]" if isinstance(value, list) else name: value for name, value in query.items()
        }
        return await self.call("GET", f"/{path}?{urlencode(names, doseq=True)}")

    async def refused(self, path: str, **query: Any) -> str:
        status, kind, text = await self.fault("GET", f"/{path}?{urlencode(query, doseq=True)}")
        assert (status, kind) == (400, "invalid_request_error")
        return text


@pytest.fixture
def api(scene: Scene, where: DatabaseLocation) -> Reports:
    write(where, *RECORDS)
    return Reports(scene, where, LEDGER_DB=where)


async def test_usage_of_a_range_is_summed(api: Reports) -> None:
    found = await api.get("analytics/usage", starting_at=at(0.5), ending_at=at(48))
    (row,) = found["data"]
    assert (row["starting_at"], row["ending_at"]) == (
        "2025-03-10T00:00:00Z",
        "2025-03-12T00:00:00Z",
    )
    assert set(row["group"].values()) == {None}
    assert row["usage"] == {
        "uncached_input_tokens": 148,
        "cache_creation": {"ephemeral_1h_input_tokens": 10, "ephemeral_5m_input_tokens": 40},
        "cache_read_input_tokens": 300,
        "output_tokens": 44,
        "server_tool_use": {"web_search_requests": 2},
        "requests": 5,
        "total_tokens": 148 + 50 + 300 + 44,
    }
    assert (found["has_more"], found["next_page"]) == (False, None)
    (cost,) = (await api.get("analytics/cost", starting_at=at(0), ending_at=at(48)))["data"]
    assert cost["cost"] == {
        "currency": "USD",
        "amount": "7.0000005",
        "list_amount": "7.0000005",
        "requests": 5,
        "unpriced_requests": 1,
    }
    none = await api.get("analytics/usage", starting_at=at(-9), ending_at=at(0))
    assert none["data"] == []


GROUPED: list[tuple[str, dict[str | None, tuple[int, str]]]] = [
    ("model", {SONNET: (4, "5.7500005"), HAIKU: (2, "1.25")}),
    ("actor", {"ada": (3, "5.0000005"), "bob@example.org": (1, "1"), None: (1, "1")}),
    ("actor_type", {"user_actor": (4, "6.0000005"), None: (1, "1")}),
    ("product", {"claude_code": (1, "4.0000005"), "messages_api": (4, "3")}),
    ("rbac_group_id", {"team": (3, "5.0000005"), "leads": (1, "1"), None: (2, "2")}),
    ("workspace_id", {None: (5, "7.0000005")}),
    ("api_key_id", {None: (5, "7.0000005")}),
]


async def test_rows_are_grouped(api: Reports, subtests: pytest.Subtests) -> None:
    for dimension, rows in GROUPED:
        with subtests.test(dimension=dimension):
            asked = {"starting_at": at(0), "ending_at": at(48), "group_by": [dimension]}
            for kind, figure in (("cost", "amount"), ("usage", "total_tokens")):
                data = (await api.get(f"analytics/{kind}", **asked))["data"]
                ranks = [float(row[kind][figure]) for row in data]
                assert ranks == sorted(ranks, reverse=True), "the highest first"
                found = {}
                for row in data:
                    value = row["group"].pop(dimension)
                    assert set(row["group"].values()) == {None}
                    name = value["user_id"] if isinstance(value, dict) else value
                    found[name] = (row[kind]["requests"], row[kind].get("amount", rows[name][1]))
                assert found == rows


FILTERED: list[tuple[dict[str, Any], int | None]] = [
    ({"models": [HAIKU]}, 2),
    ({"models": [HAIKU, SONNET]}, 6),  # a request counts for each of its models
    ({"actor_ids": ["ada"]}, 3),
    ({"actor_ids": ["ada", "bob@example.org", "nobody"]}, 4),
    ({"actor_types": ["user_actor"]}, 4),
    ({"products": ["claude_code"]}, 1),
    ({"rbac_group_ids": ["team"]}, 3),
    ({"rbac_group_ids": ["team", "leads"]}, 3),
    ({"rbac_group_ids": ["leads"], "models": [HAIKU], "actor_ids": ["bob@example.org"]}, 1),
    ({"inference_geos": ["not_available"]}, 5),
    ({"api_key_ids": [""]}, 5),
    ({"actor_ids": ["nobody"]}, None),
    ({"workspace_ids": ["wrkspc_1"]}, None),
    ({"service_tiers": ["batch"], "models": [SONNET]}, None),
]


async def test_filters_restrict_a_report(api: Reports, subtests: pytest.Subtests) -> None:
    for filters, requests in FILTERED:
        with subtests.test(filters=filters):
            found = await api.get("analytics/usage", starting_at=at(0), ending_at=at(48), **filters)
            assert [row["usage"]["requests"] for row in found["data"]] == (
                [] if requests is None else [requests]
            )


async def test_rows_of_time_buckets_are_ranked_by_time(api: Reports) -> None:
    asked = {"starting_at": at(1), "ending_at": at(30), "time_bucket_width": "1h"}
    for order, hours in (("asc", [1, 2, 25, 26]), ("desc", [26, 25, 2, 1])):
        found = await api.get("analytics/usage", order_by="time", order=order, **asked)
        assert [datetime.fromisoformat(row["starting_at"]) for row in found["data"]] == [
            datetime.fromisoformat(at(hour)) for hour in hours
        ]
    fewest = await api.get("analytics/usage", order_by="requests", order="asc", **asked)
    assert [row["usage"]["requests"] for row in fewest["data"]] == [1, 1, 1, 2]
    minute = {**asked, "time_bucket_width": "1m", "ending_at": at(25)}
    (first, *_) = (await api.get("analytics/cost", order_by="time", order="asc", **minute))["data"]
    assert (first["starting_at"], first["ending_at"]) == (
        "2025-03-10T01:00:00Z",
        "2025-03-10T01:01:00Z",
    )


async def test_pages_of_rows_have_each_row_once(api: Reports) -> None:
    write(api.where, *(used(5 + number / 100, f"p{number:02}") for number in range(25)))
    asked = {"starting_at": at(0), "group_by": ["actor"], "ending_at": at(48), "limit": 10}
    names = list[str | None]()
    page: dict[str, str | None] = {}
    for _ in range(3):
        found = await api.get("analytics/usage", **asked, **page)
        names += [
            row["group"]["actor"] and row["group"]["actor"]["user_id"] for row in found["data"]
        ]
        page = {"page": found["next_page"]}
        write(api.where, used(50, "late"))  # beyond the range
    assert (found["has_more"], page) == (False, {"page": None})
    assert len(names) == len(set(names)) == 28
    assert names[:2] == ["ada", "bob@example.org"]


async def test_report_of_buckets_has_empty_ones_and_pages(api: Reports) -> None:
    for path in ("analytics/usage_report", "usage_report/messages"):
        asked = {"starting_at": at(-20), "ending_at": at(40), "limit": 2}
        first = await api.get(path, **asked)
        assert [len(bucket["results"]) for bucket in first["data"]] == [0, 1]
        assert first["data"][0]["starting_at"] == "2025-03-09T00:00:00Z"
        assert first["data"][1]["results"][0]["requests"] == 3
        second = await api.get(path, **asked, page=first["next_page"])
        assert [bucket["ending_at"] for bucket in second["data"]] == ["2025-03-12T00:00:00Z"]
        assert second["data"][0]["results"][0]["requests"] == 2
        assert (first["has_more"], second["has_more"], second["next_page"]) == (True, False, None)
        hours = await api.get(path, starting_at=at(0.5), bucket_width="1h")
        assert len(hours["data"]) == 24
        assert [len(bucket["results"]) for bucket in hours["data"]][:4] == [0, 1, 1, 0]
        minutes = await api.get(path, starting_at=at(1), bucket_width="1m", limit=256)
        assert [len(bucket["results"]) for bucket in minutes["data"]].count(1) == 3
        assert len((await api.get(path, starting_at=at(0)))["data"]) == 7


async def test_report_of_the_future_is_empty(api: Reports) -> None:
    for path in ("analytics/usage_report", "usage_report/messages", "cost_report"):
        for start in (tables.timestamp(time.time() + 2 * DAY), "9999-12-31T00:00:00Z"):
            found = await api.get(path, starting_at=start, bucket_width="1d")
            assert (found["data"], found["has_more"], found["next_page"]) == ([], False, None)


async def test_older_reports_have_their_own_dimensions(api: Reports) -> None:
    asked = {"starting_at": at(0), "ending_at": at(24)}
    usage = await api.get(
        "usage_report/messages", **asked, group_by=["account_id", "model"], account_ids=["ada"]
    )
    (bucket,) = usage["data"]
    assert [(row["account_id"], row["model"]) for row in bucket["results"]] == [
        ("ada", SONNET),
        ("ada", HAIKU),
    ]
    assert {row["workspace_id"] for row in bucket["results"]} == {None}
    cost = await api.get("cost_report", **asked, group_by=["description", "workspace_id"])
    (bucket,) = cost["data"]
    assert [(row["description"], row["amount"]) for row in bucket["results"]] == [
        (f"{SONNET} usage", "4.7500005"),
        (f"{HAIKU} usage", "1.25"),
    ]
    (row,) = (await api.get("cost_report", **asked))["data"][0]["results"]
    assert (row["amount"], row["currency"], row["description"]) == ("6.0000005", "USD", None)
    assert "bucket_width" in await api.refused("cost_report", **asked, bucket_width="1h")


INVALID: list[tuple[str, dict[str, Any], str]] = [
    ("analytics/usage", {}, "starting_at"),
    ("analytics/usage", {"starting_at": "2025-03-10"}, "starting_at"),
    ("analytics/usage", {"starting_at": "yesterday"}, "starting_at"),
    ("analytics/usage", {"starting_at": "1960-01-01T00:00:00Z"}, "starting_at"),
    ("analytics/usage", {"ending_at": at(-1)}, "ending_at"),
    ("analytics/usage", {"ending_at": at(32 * 24)}, "ending_at"),
    ("analytics/usage", {"time_bucket_width": "1h"}, "ending_at"),
    ("analytics/usage", {"time_bucket_width": "1m", "ending_at": at(25)}, "ending_at"),
    ("analytics/usage", {"time_bucket_width": "1w", "ending_at": at(5)}, "time_bucket_width"),
    ("analytics/usage", {"group_by": "color"}, "group_by"),
    ("analytics/usage", {"group_by": "cost_type"}, "group_by"),
    ("analytics/usage", {"order_by": "amount"}, "order_by"),
    ("analytics/usage", {"order": "down"}, "order"),
    ("analytics/usage", {"limit": "0"}, "limit"),
    ("analytics/usage", {"page": "page_WzFd"}, "page"),
    ("analytics/usage", {"page": "page_WzEsMSwxLCJ4Il0="}, "page"),
    ("analytics/usage_report", {"limit": 32}, "limit"),
    ("analytics/usage_report", {"bucket_width": "1h", "limit": 169}, "limit"),
    ("analytics/usage_report", {"page": "page_WzEsMTc0MTU2NDgwMV0="}, "page"),
    ("analytics/user_usage_report", {"order_by": "time"}, "order_by"),
]


async def test_invalid_query_is_refused(api: Reports, subtests: pytest.Subtests) -> None:
    for path, query, field in INVALID:
        with subtests.test(path=path, query=query):
            asked = {"starting_at": at(0), **query} if query else {}
            assert (await api.refused(path, **asked)).startswith(field)


async def test_report_groups_by_at_most_five_dimensions(api: Reports) -> None:
    names = ["model", "actor", "product", "rbac_group_id", "api_key_id", "workspace_id"]
    asked = {"starting_at": at(0), "ending_at": at(24)}
    assert (await api.get("analytics/usage", **asked, group_by=names[:5]))["data"]
    assert "at most 5" in await api.refused("analytics/usage", **asked, group_by=names)
    costs = await api.get("analytics/cost", **asked, group_by=[*names[:5], "cost_type"])
    assert {row["cost"]["requests"] for row in costs["data"]} == {None}


async def test_requests_for_one_report_share_its_reading(
    api: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = []
    read = reports.read

    def counted(*given: Any, **named: Any) -> reports.Report:
        readings.append(given)
        return read(*given, **named)

    monkeypatch.setattr(reports, "read", counted)
    asked = {"starting_at": at(0), "ending_at": at(48)}
    await api.started()
    paths = ("analytics/usage", "analytics/cost", "analytics/usage")
    found = await asyncio.gather(*(api.get(path, **asked) for path in paths))
    assert len(readings) == 2
    assert all(len(each["data"]) == 1 for each in found)


async def test_report_with_too_many_rows_is_refused(
    api: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "MAX_ROWS", 2)
    asked = {"starting_at": at(0), "ending_at": at(48)}
    assert (await api.get("analytics/usage", **asked, group_by=["model"]))["data"]
    assert "more than 2 rows" in await api.refused("analytics/usage", **asked, group_by=["actor"])


@sqlite_only
async def test_unreadable_ledger_is_a_503(api: Reports, caplog: pytest.LogCaptureFixture) -> None:
    await api.started()
    elsewhere = api.path.rename(api.path.with_suffix(".gone"))
    query = urlencode({"starting_at": at(0)})
    for path in ("analytics/usage", "usage_report/messages"):
        status, kind, text = await api.fault("GET", f"/{path}?{query}")
        assert (status, kind) == (503, "overloaded_error")
        assert "temporarily unavailable" in text
        assert str(api.path) not in text
    assert "a report cannot be made: LEDGER_DB=" in caplog.text
    elsewhere.rename(api.path)


def test_amounts_are_fractional_cents() -> None:
    for nanos, text in ((0, "0"), (1, "0.0000001"), (123_456_789, "12.3456789"), (5 * CENT, "5")):
        assert report_forms.cents_text(nanos) == text


READ: list[tuple[str, dict[str, Any], int]] = [
    ("usage", {"group_by": ["model", "actor", "product"], "limit": 1}, 5),
    ("usage", {"time_bucket_width": "1h", "order_by": "time", "limit": 2}, 4),
    ("cost", {"group_by": ["rbac_group_id", "actor_type"], "limit": 1}, 4),
    ("usage_report", {"group_by": ["model"], "bucket_width": "1d", "limit": 1}, 2),
    ("cost_report", {"group_by": ["model", "cost_type"], "bucket_width": "1h"}, 48),
    ("user_usage_report", {"group_by": ["model"], "limit": 1}, 3),
    ("user_cost_report", {"bucket_width": "1d", "user_ids": ["ada"]}, 2),
]


async def test_sdk_reads_reports(api: Reports, sdk: Sdk, subtests: pytest.Subtests) -> None:
    url = await api.started()
    for resource, query, count in READ:

        def listed(client: Any, resource: str = resource, query: dict[str, Any] = query) -> Any:
            report = getattr(client.beta.organization.analytics, resource)
            return report.list(starting_at=at(0), ending_at=at(48), **query)

        with subtests.test(resource=resource, query=query):
            assert len(await sdk(url, listed)) == count


async def test_sdk_reads_the_older_reports(api: Reports, sdk: Sdk) -> None:
    """The SDK has no methods for them."""
    url = await api.started()
    for path in ("usage_report/messages", "cost_report"):

        def get(client: Any, path: str = path) -> Any:
            options = {"params": {"starting_at": at(0)}}
            return client.get(f"/v1/organizations/{path}", cast_to=object, options=options)

        found = await sdk(url, get, checked=False)
        assert len(found["data"]) == 7


async def test_summaries_count_active_people(api: Reports, sdk: Sdk) -> None:
    day = 24
    write(
        api.where,
        used(-29 * day, "cy", groups=("leads",)),
        used(-30 * day, "long ago"),
        used(3 * day, "ada", session_id="s"),
        used(3 * day, "dee", usage=Usage(), cost=None, model=None),
    )
    url = await api.started()

    def listed(**query: Any) -> Any:
        given = {"starting_date": "2025-03-10", "ending_date": "2025-03-14", **query}
        return sdk(url, lambda client: client.beta.organization.analytics.summaries.list(**given))

    def active(found: Any, product: str = "") -> list[tuple[int, ...]]:
        periods = [f"{product}{each}_active_user_count" for each in ("daily", "weekly", "monthly")]
        return [tuple(getattr(each, name) for name in periods) for each in found]

    found = await listed()
    assert active(found) == [(2, 2, 3), (1, 2, 2), (0, 2, 2), (1, 2, 2)]
    assert active(found, "claude_code_") == [(1, 1, 1), (0, 1, 1), (0, 1, 1), (1, 1, 1)]
    assert [each.starting_at.day for each in found] == [10, 11, 12, 13]
    assert {(each.assigned_seat_count, each.cowork_daily_active_user_count) for each in found} == {
        (None, 0)
    }
    leads = await listed(filter=["rbac_group_id:leads"], ending_date="2025-03-12")
    assert active(leads) == [(1, 1, 2), (0, 1, 1)]


INVALID_SUMMARIES: list[tuple[dict[str, Any], str]] = [
    ({}, "starting_date"),
    ({"starting_date": "2025-02-30"}, "starting_date"),
    ({"starting_date": "2025-03-10T00:00:00Z"}, "starting_date"),
    ({"starting_date": "2999-01-01"}, "starting_date"),
    ({"starting_date": "2025-03-10", "ending_date": "2025-03-10"}, "starting_date"),
    ({"starting_date": "2025-03-10", "ending_date": "2026-03-12"}, "ending_date"),
    ({"starting_date": "2025-03-10", "ending_date": "2025-03-11", "page": "x"}, "page"),
    (
        {"starting_date": "2025-03-10", "ending_date": "2025-03-11", "filter": "user_id:ada"},
        "filter",
    ),
    (
        {
            "starting_date": "2025-03-10",
            "ending_date": "2025-03-11",
            "filter": ["rbac_group_id:a"] * 101,
        },
        "filter",
    ),
]


async def test_invalid_query_of_summaries_is_refused(
    api: Reports, subtests: pytest.Subtests
) -> None:
    for query, field in INVALID_SUMMARIES:
        with subtests.test(query=query):
            assert (await api.refused("analytics/summaries", **query)).startswith(field)
