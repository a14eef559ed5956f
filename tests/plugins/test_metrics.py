"""The plugin metrics: the page, its metrics, and the dashboard."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from people import CHAT, MESSAGES, message
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from tornadoproxy_metrics import (
    METRICS,
    METRICS_PATH,
    METRICS_PUBLIC,
    PrometheusMetrics,
    figures,
)
from tornadoproxy_metrics.routes import route_class

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    ModelUsage,
    Outcome,
    RequestRecord,
    Settings,
    Status,
    Usage,
    __version__,
    hookimpl,
)
from tornadoproxy.testing import (
    TEST_TOKEN,
    error_response,
    message_document,
    message_events,
    raw_response,
    request_bytes,
    request_record,
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.testing import (
        Ask,
        OpenRaw,
        Proxy,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

DASHBOARD = Path(__file__).parent.parent.parent / "deploy/grafana-dashboard.json"
SETTINGS = Settings.defaults(METRICS, METRICS_PATH, METRICS_PUBLIC)
SEND = request_bytes("POST", MESSAGES, body=json.dumps(message()).encode(), token=TEST_TOKEN)

# the order of labels in this file; the text has them in the order of their names
ORDER = (
    *("dialect", "route", "status", "outcome", "model", "type", "kind", "side", "state"),
    *("plugin", "effect", "version", "python_version"),
)

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
)


class Scrape:
    """The samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.families = list(text_string_to_metric_families(text))
        self._samples = [each for family in self.families for each in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the sample with exactly these labels."""
        found = [each.value for each in self._samples if (each.name, each.labels) == (name, labels)]
        return found[0] if found else None

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the samples of a name that are not 0, by their labels' values in `ORDER`."""
        return {
            tuple(each.labels[label] for label in ORDER if label in each.labels): each.value
            for each in self._samples
            if each.name == name and each.value
        }

    def labels(self) -> dict[str, set[str]]:
        """Return the names of the labels of each sample."""
        found: dict[str, set[str]] = {}
        for each in self._samples:
            found.setdefault(each.name, set()).update(each.labels)
        return found


def record(**changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {"usage": Usage(), "duration": 3.0, "upstream_time": 2.996}
    return request_record(**{**fields, **changes})


def counted(*records: RequestRecord) -> Scrape:
    """Return the metrics after these records."""
    kept = figures.Figures("/metrics")
    kept.watch(lambda: STATUS)
    for each in records:
        kept.count(each)
    return Scrape(kept.exposition("")[0].decode())


async def scrape(ask: Ask, to: Proxy | None = None) -> Scrape:
    response = await ask("/metrics", to=to)
    assert response.status == 200
    return Scrape(response.body.decode())


# -- the page


async def test_page_is_absent_unless_enabled(proxy: Proxy, ask: Ask) -> None:
    assert (await ask("/metrics")).status == 404
    assert "metrics" not in dict(proxy.lines)
    assert PrometheusMetrics().configure(SETTINGS) is INACTIVE


def test_missing_library_is_named_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    wanted = r"METRICS needs prometheus-client.*pip install 'tornadoproxy\[metrics\]'"
    with pytest.raises(ConfigurationError, match=wanted):
        PrometheusMetrics().configure(SETTINGS.replace({METRICS: True}))


async def test_page_requires_a_credential_unless_public(start_proxy: StartProxy, ask: Ask) -> None:
    proxy = await start_proxy(METRICS="yes")
    line = "metrics for Prometheus at /metrics, for all clients"
    assert dict(proxy.lines)["metrics"] == line
    for token, status in ((None, 401), ("wrong", 401), (TEST_TOKEN, 200)):
        assert (await ask("/metrics", token=token)).status == status
    response = await ask("/metrics")
    assert str(response.header("content-type")).startswith("text/plain; version=0.0.4")
    public = await start_proxy(METRICS="yes", METRICS_PUBLIC="yes")
    assert "EVERYBODY" in dict(public.lines)["metrics"]
    assert (await ask("/metrics", token=None)).status == 200
    assert (await ask("/v1/models", token=None)).status == 401


async def test_page_has_the_path_of_its_setting(start_proxy: StartProxy, ask: Ask) -> None:
    await start_proxy(METRICS="yes", METRICS_PATH="/internal/figures.txt")
    assert (await ask("/internal/figures.txt")).status == 200
    assert (await ask("/internal/figures_txt")).status == 404
    assert (await ask("/metrics")).status == 404
    for path in ("metrics", "/", "/v1/messages", "/openai/metrics", "/a b", "/m?x", "//m"):
        with pytest.raises(ValueError, match="must be a path such as /metrics"):
            METRICS_PATH.parse(path)


async def test_reload_changes_nothing_of_the_page(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    proxy = await start_proxy(METRICS="yes")
    await ask(MESSAGES, message())
    await records.finished()
    proxy.reload(AUTH_TOKEN=TEST_TOKEN)
    for changed in ({"METRICS_PATH": "/other"}, {"METRICS_PUBLIC": "yes"}, {"METRICS": "no"}):
        with pytest.raises(ConfigurationError, match="restart"):
            proxy.reload(**changed)
    assert (await ask("/metrics", token=None)).status == 401
    shown = await scrape(ask)
    assert shown.all("tornadoproxy_request_duration_seconds_count")["anthropic", "messages"] == 1


async def test_page_is_openmetrics_on_request(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    await ask(MESSAGES, message())
    await records.finished()
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3"
    response = await ask("/metrics", headers={"Accept": accept})
    kind = "application/openmetrics-text; version=1.0.0"
    assert str(response.header("content-type")).startswith(kind)
    text = response.body.decode()
    families = list(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # the library's
    requests = next(each for each in families if each.name == "tornadoproxy_requests")
    assert sum(each.value for each in requests.samples) == 1


async def test_each_proxy_has_its_own_metrics(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    first = await start_proxy(METRICS="yes")
    second = await start_proxy(METRICS="yes")
    await ask(MESSAGES, message(), to=first)
    await records.finished()
    assert (await scrape(ask, first)).all("tornadoproxy_requests_total")
    assert (await scrape(ask, second)).all("tornadoproxy_requests_total") == {}


# -- served requests


async def test_message_is_counted(
    start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, records: Records
) -> None:
    class PriceList:
        @hookimpl(tryfirst=True)
        def price(self, usage: Usage) -> int:
            return (usage.input_tokens or 0) * 3_000 + (usage.output_tokens or 0) * 15_000

    await start_proxy(METRICS="yes", plugins=[PriceList()])
    usage = {"input_tokens": 100, "output_tokens": 7}
    document = message_document("Hello", model="claude-opus-5", usage=usage)
    upstream.script(sse_response(message_events(document)))
    await ask(MESSAGES, message(stream=True))
    ended = await records.finished()
    shown = await scrape(ask)
    labels = {"dialect": "anthropic", "route": "messages"}
    ending = {"status": "200", "outcome": "completed"}
    assert shown.value("tornadoproxy_requests_total", **labels, **ending) == 1
    for name, seconds in (
        ("request_duration", ended.duration),
        ("time_to_first_byte", ended.time_to_first_byte),
        ("time_to_first_token", ended.time_to_first_token),
        ("overhead", ended.duration - (ended.upstream_time or 0)),
    ):
        assert seconds is not None
        assert shown.value(f"tornadoproxy_{name}_seconds_count", **labels) == 1
        total = shown.value(f"tornadoproxy_{name}_seconds_sum", **labels)
        assert total == pytest.approx(seconds)
    tokens = {("claude-opus-5", "input"): 100, ("claude-opus-5", "output"): 7}
    assert shown.all("tornadoproxy_tokens_total") == tokens
    cost = shown.value("tornadoproxy_cost_usd_total", model="claude-opus-5")
    assert cost == pytest.approx(0.000405)
    assert shown.value("tornadoproxy_unpriced_requests_total", model="claude-opus-5") == 0


async def test_chat_completion_and_page_are_counted(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    assert (await ask(CHAT, message())).status == 200
    await records.finished()
    await scrape(ask)
    await records.finished(2)
    shown = await scrape(ask)
    assert shown.all("tornadoproxy_requests_total") == {
        ("openai", "chat_completions", "200", "completed"): 1,
        ("anthropic", "page", "200", "completed"): 1,
    }
    first_token = "tornadoproxy_time_to_first_token_seconds_count"
    assert shown.value(first_token, dialect="openai", route="chat_completions") == 0, "no stream"
    tokens = shown.value("tornadoproxy_tokens_total", model=message()["model"], type="output")
    assert tokens == records.all[0].usage.output_tokens


def test_counters_start_at_zero() -> None:
    shown = counted()
    for name, labels in (
        *(
            ("requests", {**route, "status": status, "outcome": outcome})
            for route in (
                {"dialect": "anthropic", "route": "messages"},
                {"dialect": "openai", "route": "chat_completions"},
            )
            for status, outcome in (("200", "completed"), ("502", "failed"), ("429", "denied"))
        ),
        *(("auth_failures", {"dialect": dialect}) for dialect in ("anthropic", "openai")),
        *(("upstream_errors", {"kind": kind}) for kind in ("timeout", "other", "status_5xx")),
    ):
        assert shown.value(f"tornadoproxy_{name}_total", **labels) == 0, (name, labels)


async def test_failed_authentication_is_counted(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    assert (await ask("/v1/models", token=None)).status == 401
    assert (await ask("/openai/v1/models", token="wrong")).status == 401
    await records.finished(2)
    shown = await scrape(ask)
    assert shown.all("tornadoproxy_auth_failures_total") == {("anthropic",): 1, ("openai",): 1}
    assert shown.all("tornadoproxy_upstream_errors_total") == {}
    refused = {"status": 401, "outcome": Outcome.DENIED, "error": "Denied: not for you"}
    assert counted(record(**refused)).all("tornadoproxy_auth_failures_total") == {}


async def resets(exchange: UpstreamExchange) -> None:
    await exchange.read_all()
    exchange.reset()


@pytest.mark.parametrize("route", [MESSAGES, CHAT])
async def test_upstream_error_is_counted_by_kind(
    route: str, start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(METRICS="yes", UPSTREAM_FIRST_BYTE_TIMEOUT=0.1)
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
        upstream.script(response)
        assert (await ask(route, message())).status >= 429
    await upstream.stop()
    assert (await ask(route, message())).status == 502
    await records.finished(len(kinds) + 1)
    shown = await scrape(ask)
    expected = {(kind,): 1.0 for kind in (*kinds, "unreachable")}
    assert shown.all("tornadoproxy_upstream_errors_total") == expected


async def test_disconnected_client_is_counted_without_a_status(
    start_proxy: StartProxy, raw: OpenRaw, ask: Ask, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    upstream.script(silent_response())
    client = await raw()
    await client.send(SEND)
    await upstream.received()
    busy = {"side": "upstream", "state": "busy"}
    shown = await scrape(ask)
    assert shown.value("tornadoproxy_in_flight") == 2, "the scrape included"
    assert shown.value("tornadoproxy_connections", **busy) == 1
    await client.close()
    await records.finished(2)
    shown = await scrape(ask)
    requests = shown.all("tornadoproxy_requests_total")
    assert requests["anthropic", "messages", "none", "abandoned"] == 1
    assert shown.value("tornadoproxy_in_flight") == 1
    assert shown.value("tornadoproxy_connections", **busy) == 0


async def test_failing_plugin_is_counted(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    class Forgetful:
        @hookimpl
        def request_finished(self) -> None:
            raise KeyError

    await start_proxy(METRICS="yes", plugins={"forgetful": Forgetful()})
    for path in ("/v1/models", "/nowhere", "/openai/nowhere"):
        await ask(path)
    await records.finished(3)
    shown = await scrape(ask)
    assert shown.all("tornadoproxy_plugin_errors_total") == {("forgetful", "logged"): 3}
    for effect in ("logged", "refused"):
        assert shown.value("tornadoproxy_plugin_errors_total", plugin="token", effect=effect) == 0


async def test_no_metric_names_a_person(
    start_proxy: StartProxy, ask: Ask, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    headers = {"X-Claude-Code-Session-Id": "a-session"}
    await ask(f"{MESSAGES}?who=somebody", message(), headers=headers)
    await records.finished()
    lines = (await ask("/metrics")).body.decode().splitlines()
    # a plugin may have the name of a principal
    text = "\n".join(line for line in lines if not line.startswith("tornadoproxy_plugin_errors"))
    for each in (TEST_TOKEN, "somebody", "a-session", "127.0.0.1", '"token"'):
        assert each not in text


async def test_scrape_while_draining_says_so(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    proxy = await start_proxy(METRICS="yes", DRAIN_TIMEOUT=15)
    go_on = asyncio.Event()

    async def held_back(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await go_on.wait()
        await exchange.head(200, {"Content-Length": "0"})

    upstream.script(held_back)
    waiting, scraping = await raw(), await raw()
    await waiting.send(SEND)
    await upstream.received()
    # the request begins before the drain, which closes idle connections
    await scraping.send(request_bytes("GET", "/metrics", token=TEST_TOKEN)[:-2])
    while proxy.server.status().client_connections < 2:
        await asyncio.sleep(0)
    draining = asyncio.create_task(proxy.server.drain())
    while not proxy.server.status().draining:
        await asyncio.sleep(0)
    await scraping.send(b"\r\n")
    shown = Scrape((await scraping.response()).body.decode())
    assert shown.value("tornadoproxy_draining") == 1
    go_on.set()
    await waiting.response()
    await draining


# -- records


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
        ("ledger", "logged"): 2,
        ("keys", "refused"): 4,
        ("ledger", "refused"): 1,
    }
    build = "tornadoproxy_build_info"
    assert shown.labels()[build] == {"version", "python_version"}
    assert [each[0] for each in shown.all(build)] == [__version__]


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        ("messages", "/v1/messages"),
        ("count_tokens", "/v1/messages/count_tokens"),
        ("batches", "/v1/messages/batches /v1/messages/batches/b_1/results"),
        ("files", "/v1/files /v1/files/f_1/content"),
        ("models", "/v1/models /v1/models/x /openai/v1/models/x /openai/models"),
        ("chat_completions", "/openai/v1/chat/completions /openai/chat/completions"),
        ("other", "/v1/messages/ /v1/filesystem /openai/v1/embeddings /"),
    ],
)
def test_path_has_a_kind_of_route(kind: str, paths: str) -> None:
    assert {route_class(path) for path in paths.split()} == {kind}


def test_paths_create_no_time_series() -> None:
    paths = (f"{prefix}{number}" for number in range(300) for prefix in ("/", "/v1/models/"))
    shown = counted(*(record(route=path) for path in paths))
    routes = {labels[1] for labels in shown.all("tornadoproxy_requests_total")}
    assert routes == {"other", "models"}


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
    used = Usage(10, 1, others=others)
    shown = counted(
        record(usage=used, model="sonnet", cost=10**9 + 1),
        record(usage=used, model="sonnet", cost=None),
    )
    assert shown.all("tornadoproxy_tokens_total") == {
        ("sonnet", "input"): 20,
        ("sonnet", "output"): 2,
        ("opus", "input"): 402,
        ("opus", "output"): 100,
    }
    costs = shown.all("tornadoproxy_cost_usd_total")
    assert costs == {("sonnet",): pytest.approx(0.1), ("opus",): pytest.approx(0.900000001)}
    unpriced = shown.all("tornadoproxy_unpriced_requests_total")
    assert unpriced == {("sonnet",): 1, ("opus",): 1}


def test_tokens_of_all_types_add_up() -> None:
    usages = [
        Usage(input_tokens=1, cache_creation_input_tokens=10),
        Usage(input_tokens=1, cache_creation_input_tokens=10, cache_creation_1h_input_tokens=4),
        Usage(output_tokens=5, cache_read_input_tokens=3, partial=True),
    ]
    shown = counted(*(record(usage=usage) for usage in usages))
    tokens = {kind: count for (_, kind), count in shown.all("tornadoproxy_tokens_total").items()}
    writes = {"cache_creation_5m": 16, "cache_creation_1h": 4}
    assert tokens == {"input": 2, "output": 5, "cache_read": 3, **writes}


def test_error_of_a_page_is_none_of_the_upstream() -> None:
    shown = counted(record(route="/page", status=503, upstream_time=None))
    assert shown.all("tornadoproxy_upstream_errors_total") == {}


def test_overhead_is_never_negative() -> None:
    shown = counted(record(duration=1.0, upstream_time=1.1))
    labels = {"dialect": "anthropic", "route": "messages"}
    assert shown.value("tornadoproxy_overhead_seconds_sum", **labels) == 0
    assert shown.value("tornadoproxy_overhead_seconds_bucket", **labels, le="0.0005") == 1


def test_names_follow_the_conventions_of_prometheus() -> None:
    shown = counted(record(usage=Usage(1, 2), cost=3, error="UpstreamClosed: x", status=502))
    ours = [each for each in shown.families if each.name.startswith("tornadoproxy_")]
    assert len(ours) > 15
    for family in shown.families:
        assert family.name.startswith(("tornadoproxy_", "process_"))
        assert family.documentation
        for sample in family.samples:
            assert not sample.name.endswith("_created")
            if family.type == "counter":
                assert sample.name.endswith("_total")


# -- the dashboard


def panels(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for each in document["panels"]:
        yield each
        yield from each.get("panels", ())


def every_sample() -> Scrape:
    """A scrape with every sample."""
    return counted(
        record(usage=Usage(1, 2), cost=3),
        record(status=401, principal=None, outcome=Outcome.DENIED, error="AuthenticationFailed: x"),
        record(status=502, outcome=Outcome.FAILED, error="UpstreamClosed: x"),
    )


def test_dashboard_shows_every_metric_and_no_other() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    labels = every_sample().labels()
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
    taken: set[tuple[int, int]] = set()
    for panel in panels(document):
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells
        for each in (panel, *panel.get("targets", ())):
            if panel["type"] != "row":
                assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_dashboard_variables_are_labels() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            (name,) = re.findall(r"label_values\((\w+)", variable["definition"])
            assert name in every_sample().labels()
