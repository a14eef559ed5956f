"""The plugin metrics: the page, its metrics, and the dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from people import CHAT, MESSAGES, message
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from scene import Scene
from tornadoproxy_metrics import METRICS_PATH, figures
from tornadoproxy_metrics.routes import route_class

from tornadoproxy import (
    DatabaseStatus,
    ModelUsage,
    Outcome,
    RequestRecord,
    Status,
    UpstreamStatus,
    Usage,
    __version__,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    Response,
    UpstreamExchange,
    error_response,
    raw_response,
    request_record,
    silent_response,
)

DASHBOARD = Path(__file__).parent.parent.parent / "deploy/grafana-dashboard.json"
STATUS = Status(
    in_flight=3,
    waiting=1,
    held_bytes=4096,
    client_connections=7,
    upstream_connections=2,
    idle_upstream_connections=5,
    plugin_failures={"ledger": 2},
    plugin_refusals={"keys": 4, "ledger": 1},
    draining=True,
    databases={
        "keys": (DatabaseStatus("KEYS_DB", failing=True, failures=3),),
        "ledger": (DatabaseStatus("LEDGER_DB", failing=False, failures=1, held=7, lost=2),),
    },
    upstreams=(
        UpstreamStatus("eu", "bedrock", "resting", 2, {"200": 7, "connection": 1}, 3, 4.5, 1.5, 7),
    ),
)


class Scrape:
    """The samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.text = text
        families = text_string_to_metric_families(text)
        self._samples = [each for family in families for each in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the sample with exactly these labels."""
        found = [each.value for each in self._samples if (each.name, each.labels) == (name, labels)]
        return found[0] if found else None

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of a name that are not 0, by the values of their sorted labels."""
        return {
            tuple(each.labels[label] for label in sorted(each.labels)): each.value
            for each in self._samples
            if each.name == name and each.value
        }

    def labels(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for each in self._samples:
            found.setdefault(each.name, set()).update(each.labels)
        return found


def record(**changes: Any) -> RequestRecord:  # any field of a record
    fields: dict[str, Any] = {"usage": Usage(), "duration": 3.0, "upstream_time": 2.996}
    return request_record(**{**fields, **changes})


def counted(*records: RequestRecord) -> Scrape:
    kept = figures.Figures("/metrics")
    kept.watch(lambda: STATUS)
    for each in records:
        kept.count(each)
    return Scrape(kept.exposition("")[0].decode())


async def scrape(scene: Scene) -> Scrape:
    response = await scene.ask("/metrics")
    assert response.status == 200
    return Scrape(response.body.decode())


# -- the page


async def test_page_requires_a_credential_unless_public(scene: Scene) -> None:
    proxy = await scene.start(METRICS="yes")
    line = "metrics for Prometheus at /metrics, for all clients"
    assert dict(proxy.lines)["metrics"] == line
    proxy.reload()
    for token, status in ((None, 401), ("wrong", 401), (TEST_TOKEN, 200)):
        assert (await scene.ask("/metrics", token=token)).status == status
    response = await scene.ask("/metrics")
    assert str(response.header("content-type")).startswith("text/plain; version=0.0.4")
    public = await scene.start(METRICS="yes", METRICS_PUBLIC="yes")
    assert "EVERYBODY" in dict(public.lines)["metrics"]
    assert (await scene.ask("/metrics", token=None)).status == 200
    assert (await scene.ask("/v1/models", token=None)).status == 401


async def test_page_has_the_path_of_its_setting(scene: Scene) -> None:
    await scene.start(METRICS="yes", METRICS_PATH="/internal/figures.txt")
    assert (await scene.ask("/internal/figures.txt")).status == 200
    assert (await scene.ask("/internal/figures_txt")).status == 404
    assert (await scene.ask("/metrics")).status == 404
    for path in ("metrics", "/", "/v1/messages", "/openai/metrics", "/a b", "/m?x", "//m"):
        with pytest.raises(ValueError, match="must be a path such as /metrics"):
            METRICS_PATH.parse(path)


async def test_page_is_openmetrics_on_request(scene: Scene) -> None:
    await scene.start(METRICS="yes")
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3"
    response = await scene.ask("/metrics", headers={"Accept": accept})
    kind = "application/openmetrics-text; version=1.0.0"
    assert str(response.header("content-type")).startswith(kind)
    parsed = openmetrics_parser.text_string_to_metric_families(response.body.decode())  # type: ignore[no-untyped-call]  # the library's
    assert "tornadoproxy_requests" in [each.name for each in parsed]


# -- records


def test_counters_start_at_zero() -> None:
    shown = counted()
    assert "_created" not in shown.text
    for name, labels in (
        *(
            ("requests", {"dialect": dialect, "route": route, "status": "429", "outcome": "denied"})
            for dialect, route in (("anthropic", "messages"), ("openai", "chat_completions"))
        ),
        ("auth_failures", {"dialect": "openai"}),
        ("upstream_errors", {"kind": "timeout"}),
        ("upstream_errors", {"kind": "status_5xx"}),
    ):
        assert shown.value(f"tornadoproxy_{name}_total", **labels) == 0, (name, labels)


def test_request_is_counted_by_route_and_end() -> None:
    shown = counted(
        record(),
        record(),
        record(dialect="openai", route=CHAT, status=502, outcome=Outcome.FAILED),
        record(status=None, outcome=Outcome.ABANDONED),
        record(route="/metrics", upstream_time=None),
    )
    assert shown.all("tornadoproxy_requests_total") == {
        ("anthropic", "completed", "messages", "200"): 2,
        ("openai", "failed", "chat_completions", "502"): 1,
        ("anthropic", "abandoned", "messages", "none"): 1,
        ("anthropic", "completed", "page", "200"): 1,
    }


def test_durations_of_a_request() -> None:
    shown = counted(
        record(time_to_first_byte=0.5, time_to_first_token=0.75),
        # one without a response, whose time upstream was longer as the clocks tell it
        record(time_to_first_byte=None, duration=1.0, upstream_time=1.1),
    )
    for name, count, total in (
        ("request_duration", 2, 4.0),
        ("time_to_first_byte", 1, 0.5),
        ("time_to_first_token", 1, 0.75),
        ("overhead", 2, 0.004),
    ):
        key = ("anthropic", "messages")
        assert shown.all(f"tornadoproxy_{name}_seconds_count")[key] == count
        assert shown.all(f"tornadoproxy_{name}_seconds_sum")[key] == pytest.approx(total)


async def resets(exchange: UpstreamExchange) -> None:
    await exchange.read_all()
    exchange.reset()


async def test_error_is_counted_by_kind(scene: Scene) -> None:
    await scene.start(METRICS="yes", UPSTREAM_FIRST_BYTE_TIMEOUT=0.1)
    kinds: dict[str, Response] = {
        "timeout": silent_response(),
        "closed": resets,
        "protocol": raw_response(b"HTTP/9 nonsense\r\n\r\n"),
        "credential": error_response(401, "authentication_error", "no"),
        "status_429": error_response(429, "rate_limit_error", "slow down"),
        "status_529": error_response(529, "overloaded_error", "later"),
        "status_5xx": error_response(500, "api_error", "oh"),
    }
    for response in kinds.values():
        scene.upstream.script(response)
        assert (await scene.ask(MESSAGES, message())).status >= 429
    await scene.upstream.stop()
    assert (await scene.ask(MESSAGES, message())).status == 502
    assert (await scene.ask("/openai/v1/models", token="wrong")).status == 401
    await scene.records.finished(len(kinds) + 2)
    shown = await scrape(scene)
    expected = {(kind,): 1.0 for kind in (*kinds, "unreachable")}
    assert shown.all("tornadoproxy_upstream_errors_total") == expected
    assert shown.all("tornadoproxy_auth_failures_total") == {("openai",): 1}


def test_other_errors_are_neither_the_upstreams_nor_of_keys() -> None:
    shown = counted(
        record(route="/page", status=503, upstream_time=None),
        record(status=400),
        record(status=401, outcome=Outcome.DENIED, error="Denied: not for you"),
    )
    assert shown.all("tornadoproxy_upstream_errors_total") == {}
    assert shown.all("tornadoproxy_auth_failures_total") == {}


def test_no_metric_names_a_person() -> None:
    text = counted(record(session_id="a-session", error="Denied: ada")).text
    for each in ("ada", "a-session", "127.0.0.1"):
        assert each not in text


def test_status_of_the_moment_is_shown() -> None:
    shown = counted()
    for name, value in (("in_flight", 3), ("waiting", 1), ("held_bytes", 4096), ("draining", 1)):
        assert shown.value(f"tornadoproxy_{name}") == value
    assert shown.all("tornadoproxy_connections") == {
        ("client", "open"): 7,
        ("upstream", "busy"): 2,
        ("upstream", "idle"): 5,
    }
    assert shown.all("tornadoproxy_plugin_errors_total") == {
        ("logged", "ledger"): 2,
        ("refused", "keys"): 4,
        ("refused", "ledger"): 1,
    }
    for name, values in (
        ("failing", {("KEYS_DB", "keys"): 1}),
        ("failures_total", {("KEYS_DB", "keys"): 3, ("LEDGER_DB", "ledger"): 1}),
        ("held_items", {("LEDGER_DB", "ledger"): 7}),
        ("lost_items_total", {("LEDGER_DB", "ledger"): 2}),
    ):
        assert shown.all(f"tornadoproxy_database_{name}") == values
    assert shown.all("tornadoproxy_upstream_state") == {("resting", "eu"): 1}
    assert shown.all("tornadoproxy_upstream_attempts_total") == {
        ("200", "eu"): 7,
        ("connection", "eu"): 1,
    }
    for name, number in (
        *(("in_flight", 2), ("rests_total", 3)),
        *(("first_byte_seconds_sum", 1.5), ("first_byte_seconds_count", 7)),
    ):
        assert shown.all(f"tornadoproxy_upstream_{name}") == {("eu",): number}
    ((_, version),) = shown.all("tornadoproxy_build_info")
    assert version == __version__


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("messages", "/v1/messages"),
        ("count_tokens", "/v1/messages/count_tokens /openai/v1/responses/input_tokens"),
        ("batches", "/v1/messages/batches /v1/messages/batches/b_1/results"),
        ("files", "/v1/files /v1/files/f_1/content"),
        ("models", "/v1/models /v1/models/x /openai/v1/models/x /openai/models"),
        ("chat_completions", "/openai/v1/chat/completions /openai/chat/completions"),
        ("responses", "/openai/v1/responses /openai/responses /openai/v1/responses/compact"),
        ("stored_responses", "/openai/v1/responses/x /openai/v1/responses/x/input_items"),
        ("other", "/v1/messages/ /v1/filesystem /openai/v1/embeddings /"),
    ],
)
def test_path_has_a_kind_of_route(kind: str, paths: str) -> None:
    assert {route_class(path) for path in paths.split()} == {kind}


def test_models_beyond_fifty_share_their_metrics() -> None:
    usage = Usage(input_tokens=1, output_tokens=2)
    records = [record(model=f"model-{number}", usage=usage, cost=10**9) for number in range(60)]
    shown = counted(*records, *records)
    tokens = shown.all("tornadoproxy_tokens_total")
    assert len({model for model, _ in tokens}) == figures.MAX_MODELS + 1
    assert tokens["model-0", "output"] == 4
    assert tokens["model-49", "input"] == 2
    assert tokens["other", "output"] == 40
    assert shown.value("tornadoproxy_cost_usd_total", model="other") == 20


def test_usage_without_a_price_is_unpriced() -> None:
    usage = Usage(input_tokens=1, output_tokens=2)
    shown = counted(
        record(usage=usage, model="new"),
        record(usage=usage, model=None),
        record(usage=usage, model="known", cost=0),
        record(usage=Usage(), model="silent"),
        record(usage=Usage(partial=True), model=None),
    )
    unpriced = shown.all("tornadoproxy_unpriced_requests_total")
    assert unpriced == {("new",): 1, ("unknown",): 2}
    assert shown.value("tornadoproxy_cost_usd_total", model="new") == 0


def test_each_model_of_a_response_is_counted() -> None:
    others = (ModelUsage("opus", Usage(200, 50), cost=9 * 10**8), ModelUsage("opus", Usage(1), 1))
    used = Usage(10, 1, 3, 10, 4, others=others)
    shown = counted(
        record(usage=used, model="sonnet", cost=10**9 + 1),
        record(usage=used, model="sonnet", cost=None),
    )
    assert shown.all("tornadoproxy_tokens_total") == {
        ("sonnet", "input"): 20,
        ("sonnet", "output"): 2,
        ("sonnet", "cache_read"): 6,
        ("sonnet", "cache_creation_5m"): 12,
        ("sonnet", "cache_creation_1h"): 8,
        ("opus", "input"): 402,
        ("opus", "output"): 100,
    }
    costs = shown.all("tornadoproxy_cost_usd_total")
    assert costs == {("sonnet",): pytest.approx(0.1), ("opus",): pytest.approx(0.900000001)}
    unpriced = shown.all("tornadoproxy_unpriced_requests_total")
    assert unpriced == {("sonnet",): 1, ("opus",): 1}


# -- the dashboard


def panels(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in document["panels"]:
        yield each
        yield from each.get("panels", ())


def test_dashboard_shows_every_metric_and_no_other() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    labels = counted(
        record(usage=Usage(1, 2), cost=3),
        record(status=401, principal=None, outcome=Outcome.DENIED, error="AuthenticationFailed: x"),
        record(status=502, outcome=Outcome.FAILED, error="UpstreamClosed: x"),
    ).labels()
    used = set()
    for panel in panels(document):
        for target in panel.get("targets", ()):
            names = re.findall(r"\b(?:tornadoproxy|process)_\w+", target["expr"])
            assert names, target["expr"]
            used |= set(names)
            for name in names:
                assert name in labels, f"{panel['title']}: there is no metric {name}"
            offered = set().union(*(labels[name] for name in names)) | {"job", "instance"}
            told = ", ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
            grouped = {each.strip() for each in told.split(",") if each.strip()}
            selected = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert grouped | selected | shown <= offered
            # a label that a sum drops cannot be shown
            if "sum" in target["expr"]:
                assert shown <= grouped
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            (name,) = re.findall(r"label_values\((\w+)", variable["definition"])
            assert name in labels
    ours = {name for name in labels if name.startswith("tornadoproxy_")}
    missing = {name for name in ours if not name.endswith(("_sum", "_count"))} - used
    assert missing == set(), "every metric has its panel"


def test_dashboard_can_be_imported() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert document["title"] == "tornadoproxy"
    assert "id" not in document, "an id belongs to one Grafana"
    assert document["schemaVersion"] >= 36
    variables = {each["name"]: each for each in document["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    numbers = [each["id"] for each in panels(document)]
    assert len(numbers) == len(set(numbers))
    for panel in panels(document):
        for each in (panel, *panel.get("targets", ())):
            if panel["type"] != "row":
                assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
