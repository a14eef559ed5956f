"""The metrics plugin: who sees the page, what the figures are, and that they stay few."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tornadoproxy_metrics
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from tornadoproxy_metrics import METRICS, METRICS_PATH, METRICS_PUBLIC, figures
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
    silent_response,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy.testing import (
        OpenRaw,
        Proxy,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

DASHBOARD = Path(__file__).parent.parent.parent / "deploy/grafana-dashboard.json"

MESSAGE = json.dumps(
    {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "Hi"}],
    }
).encode()

# of a sample's labels, which the text has in the order of their names
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
        """The value of a sample that has exactly these labels."""
        found = [each.value for each in self._samples if (each.name, each.labels) == (name, labels)]
        return found[0] if found else None

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        """All that is not 0 of a name, by its labels' values in the order of `ORDER`."""
        return {
            tuple(each.labels[label] for label in ORDER if label in each.labels): each.value
            for each in self._samples
            if each.name == name and each.value
        }

    def labels(self) -> dict[str, set[str]]:
        """The names of the labels that each sample's name comes with."""
        found: dict[str, set[str]] = {}
        for each in self._samples:
            found.setdefault(each.name, set()).update(each.labels)
        return found


def record(**changes: Any) -> RequestRecord:
    fields: dict[str, Any] = {
        "time": 1_790_000_000.0,
        "request_id": "req_1",
        "principal": "ada",
        "groups": ("staff",),
        "method": "POST",
        "route": "/v1/messages",
        "dialect": "anthropic",
        "remote_ip": "192.0.2.7",
        "status": 200,
        "outcome": Outcome.COMPLETED,
        "error": None,
        "model": "claude-sonnet-5-5",
        "usage": Usage(),
        "cost": None,
        "stop_reason": None,
        "bytes_in": 10,
        "bytes_out": 20,
        "duration": 3.0,
        "time_to_first_byte": 0.7,
        "time_to_first_token": 0.8,
        "upstream_time": 2.996,
        "session_id": "session-1",
        "agent_id": None,
        "parent_agent_id": None,
        "traceparent": None,
        "tracestate": None,
    }
    return RequestRecord(**{**fields, **changes})


def counted(*records: RequestRecord) -> Scrape:
    """What is shown after these records."""
    kept = figures.Figures("/metrics")
    kept.watch(lambda: STATUS)
    for each in records:
        kept.count(each)
    return Scrape(kept.exposition("")[0].decode())


async def ask(
    raw: OpenRaw, path: str, token: str | None = TEST_TOKEN, proxy: Proxy | None = None
) -> RawResponse:
    client = await raw(proxy)
    await client.send(request_bytes("GET", path, token=token))
    return await client.response()


async def send(raw: OpenRaw, body: bytes = MESSAGE, path: str = "/v1/messages") -> RawResponse:
    client = await raw()
    await client.send(request_bytes("POST", path, body=body, token=TEST_TOKEN))
    return await client.response()


async def scrape(raw: OpenRaw, proxy: Proxy | None = None) -> Scrape:
    response = await ask(raw, "/metrics", proxy=proxy)
    assert response.status == 200
    return Scrape(response.body.decode())


# -- the page


async def test_there_is_none_unless_it_is_asked_for(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    assert (await ask(raw, "/metrics")).status == 404
    assert "metrics" not in dict(proxy.lines)
    assert (
        tornadoproxy_metrics.PrometheusMetrics().configure(
            Settings.defaults(METRICS, METRICS_PATH, METRICS_PUBLIC)
        )
        is INACTIVE
    )


def test_nothing_is_imported_for_it_unless_it_is_asked_for() -> None:
    code = (
        "import sys, tornadoproxy_metrics as metrics; metrics.PrometheusMetrics();"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_the_library_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    settings = Settings.defaults(METRICS, METRICS_PATH, METRICS_PUBLIC).replace({METRICS: True})
    with pytest.raises(
        ConfigurationError, match=r"METRICS .*pip install 'tornadoproxy\[metrics\]'"
    ):
        tornadoproxy_metrics.PrometheusMetrics().configure(settings)


async def test_the_page_is_behind_authentication(start_proxy: StartProxy, raw: OpenRaw) -> None:
    proxy = await start_proxy(METRICS="yes")
    assert (
        dict(proxy.lines)["metrics"] == "figures for Prometheus at /metrics, for whoever may enter"
    )
    assert (await ask(raw, "/metrics", token=None)).status == 401
    assert (await ask(raw, "/metrics", token="wrong")).status == 401
    response = await ask(raw, "/metrics")
    assert response.status == 200
    assert str(response.header("content-type")).startswith("text/plain; version=0.0.4")


async def test_the_page_may_be_public(start_proxy: StartProxy, raw: OpenRaw) -> None:
    proxy = await start_proxy(METRICS="yes", METRICS_PUBLIC="yes")
    assert "EVERYBODY" in dict(proxy.lines)["metrics"]
    assert (await ask(raw, "/metrics", token=None)).status == 200
    assert (await ask(raw, "/v1/models", token=None)).status == 401


async def test_the_page_may_be_elsewhere(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(METRICS="yes", METRICS_PATH="/internal/figures.txt")
    assert (await ask(raw, "/internal/figures.txt")).status == 200
    assert (await ask(raw, "/internal/figures_txt")).status == 404
    assert (await ask(raw, "/metrics")).status == 404


@pytest.mark.parametrize(
    "path",
    ["metrics", "/", "/v1/messages", "/v1/metrics", "/openai/metrics", "/a b", "/m?x", "//m"],
)
async def test_the_page_takes_nothing_away(path: str, start_proxy: StartProxy) -> None:
    with pytest.raises(ConfigurationError, match="METRICS_PATH must be a path such as /metrics"):
        await start_proxy(METRICS="yes", METRICS_PATH=path)


async def test_only_a_start_moves_the_page(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    proxy = await start_proxy(METRICS="yes")
    await send(raw)
    await records.finished()
    proxy.reload(AUTH_TOKEN=TEST_TOKEN)
    for changed in ({"METRICS_PATH": "/other"}, {"METRICS_PUBLIC": "yes"}, {"METRICS": "no"}):
        with pytest.raises(ConfigurationError, match="start again"):
            proxy.reload(**changed)
    assert (await ask(raw, "/metrics", token=None)).status == 401
    shown = await scrape(raw)
    assert shown.all("tornadoproxy_request_duration_seconds_count")["anthropic", "messages"] == 1


async def test_openmetrics_is_spoken_to_who_asks_for_it(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    await send(raw)
    await records.finished()
    client = await raw()
    accept = [("Accept", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3")]
    await client.send(request_bytes("GET", "/metrics", accept, token=TEST_TOKEN))
    response = await client.response()
    assert str(response.header("content-type")).startswith(
        "application/openmetrics-text; version=1.0.0"
    )
    text = response.body.decode()
    families = list(openmetrics_parser.text_string_to_metric_families(text))  # type: ignore[no-untyped-call]  # the library's
    requests = next(each for each in families if each.name == "tornadoproxy_requests")
    assert sum(each.value for each in requests.samples) == 1


async def test_two_proxies_have_their_own_figures(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    first = await start_proxy(METRICS="yes")
    second = await start_proxy(METRICS="yes")
    client = await raw(first)
    await client.send(request_bytes("POST", "/v1/messages", body=MESSAGE, token=TEST_TOKEN))
    await client.response()
    await records.finished()
    assert (await scrape(raw, first)).all("tornadoproxy_requests_total")
    assert (await scrape(raw, second)).all("tornadoproxy_requests_total") == {}


# -- what is counted of a served request


async def test_a_message_is_counted(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    class PriceList:
        @hookimpl(tryfirst=True)
        def price(self, usage: Usage) -> int:
            return (usage.input_tokens or 0) * 3_000 + (usage.output_tokens or 0) * 15_000

    await start_proxy(METRICS="yes", plugins=[PriceList()])
    usage = {
        "input_tokens": 100,
        "output_tokens": 7,
        "cache_read_input_tokens": 50,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    }
    document = message_document("Hello", model="claude-opus-5", usage=usage)
    upstream.script(sse_response(message_events(document)))
    await send(raw, MESSAGE[:-1] + b', "stream": true}')
    ended = await records.finished()
    shown = await scrape(raw)
    labels = {"dialect": "anthropic", "route": "messages"}
    assert (
        shown.value("tornadoproxy_requests_total", **labels, status="200", outcome="completed") == 1
    )
    for name, seconds in (
        ("request_duration", ended.duration),
        ("time_to_first_byte", ended.time_to_first_byte),
        ("time_to_first_token", ended.time_to_first_token),
        ("overhead", ended.duration - (ended.upstream_time or 0)),
    ):
        assert seconds is not None
        assert shown.value(f"tornadoproxy_{name}_seconds_count", **labels) == 1
        told = shown.value(f"tornadoproxy_{name}_seconds_sum", **labels)
        assert told == pytest.approx(seconds)
    assert shown.all("tornadoproxy_tokens_total") == {
        ("claude-opus-5", "input"): 100,
        ("claude-opus-5", "output"): 7,
        ("claude-opus-5", "cache_read"): 50,
        ("claude-opus-5", "cache_creation_5m"): 20,
        ("claude-opus-5", "cache_creation_1h"): 10,
    }
    cost = shown.value("tornadoproxy_cost_usd_total", model="claude-opus-5")
    assert cost == pytest.approx(0.000405)
    assert shown.value("tornadoproxy_unpriced_requests_total", model="claude-opus-5") == 0


async def test_a_chat_completion_is_counted_in_its_dialect(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    body = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]}'
    assert (await send(raw, body, "/openai/v1/chat/completions")).status == 200
    ended = await records.finished()
    shown = await scrape(raw)
    assert shown.all("tornadoproxy_requests_total") == {
        ("openai", "chat_completions", "200", "completed"): 1
    }
    # there is none where nothing is streamed
    assert (
        shown.value(
            "tornadoproxy_time_to_first_token_seconds_count",
            dialect="openai",
            route="chat_completions",
        )
        == 0
    )
    tokens = shown.value("tornadoproxy_tokens_total", model="claude-sonnet-5-5", type="output")
    assert tokens == ended.usage.output_tokens


async def test_counters_start_at_zero(start_proxy: StartProxy, raw: OpenRaw) -> None:
    await start_proxy(METRICS="yes", METRICS_PUBLIC="yes")
    shown = await scrape(raw)
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
        *(("plugin_errors", {"plugin": "token", "effect": each}) for each in ("logged", "refused")),
    ):
        assert shown.value(f"tornadoproxy_{name}_total", **labels) == 0, (name, labels)


async def test_a_page_is_counted_as_one(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    await scrape(raw)
    await records.finished()
    shown = await scrape(raw)
    assert shown.all("tornadoproxy_requests_total") == {
        ("anthropic", "page", "200", "completed"): 1
    }


async def test_a_refused_credential_is_counted(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    assert (await ask(raw, "/v1/models", token=None)).status == 401
    assert (await ask(raw, "/openai/v1/models", token="wrong")).status == 401
    await records.finished(2)
    shown = await scrape(raw)
    assert shown.all("tornadoproxy_auth_failures_total") == {("anthropic",): 1, ("openai",): 1}
    assert shown.all("tornadoproxy_upstream_errors_total") == {}


def test_who_is_known_has_no_wrong_credential() -> None:
    refused = {"status": 401, "outcome": Outcome.DENIED, "error": "Denied: not for you"}
    assert counted(record(**refused)).all("tornadoproxy_auth_failures_total") == {}
    unknown = counted(record(**refused, principal=None))
    assert unknown.all("tornadoproxy_auth_failures_total") == {("anthropic",): 1}


async def resets(exchange: UpstreamExchange) -> None:
    await exchange.read_all()
    exchange.reset()


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (silent_response(), "timeout"),
        (resets, "closed"),
        (raw_response(b"HTTP/9 nonsense\r\n\r\n"), "protocol"),
        (error_response(401, "authentication_error", "no"), "credential"),
        (error_response(429, "rate_limit_error", "slow down"), "status_429"),
        (error_response(529, "overloaded_error", "later"), "status_529"),
        (error_response(500, "api_error", "oh"), "status_5xx"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/chat/completions"])
async def test_what_the_upstream_fails_is_counted_by_its_kind(
    response: Response,
    kind: str,
    path: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(METRICS="yes", UPSTREAM_FIRST_BYTE_TIMEOUT=0.2)
    upstream.script(response)
    assert (await send(raw, path=path)).status >= 429
    await records.finished()
    assert (await scrape(raw)).all("tornadoproxy_upstream_errors_total") == {(kind,): 1}


async def test_an_upstream_that_is_not_there_is_counted(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    await upstream.stop()
    assert (await send(raw)).status == 502
    await records.finished()
    shown = await scrape(raw)
    assert shown.all("tornadoproxy_upstream_errors_total") == {("unreachable",): 1}


async def test_a_client_that_left_is_counted_without_a_status(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    upstream.script(silent_response())
    client = await raw()
    await client.send(request_bytes("POST", "/v1/messages", body=MESSAGE, token=TEST_TOKEN))
    await upstream.received()
    shown = await scrape(raw)
    assert shown.value("tornadoproxy_in_flight") == 2  # and this one
    assert shown.value("tornadoproxy_connections", side="upstream", state="busy") == 1
    await client.close()
    await records.finished(2)
    shown = await scrape(raw)
    assert (
        shown.all("tornadoproxy_requests_total")["anthropic", "messages", "none", "abandoned"] == 1
    )
    assert shown.value("tornadoproxy_in_flight") == 1
    assert shown.value("tornadoproxy_connections", side="upstream", state="busy") == 0


async def test_a_failing_plugin_is_counted_and_this_one_is_none(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    class Forgetful:
        @hookimpl
        def request_finished(self) -> None:
            raise KeyError

    await start_proxy(METRICS="yes", plugins={"forgetful": Forgetful()})
    for path in ("/v1/models", "/nowhere", "/openai/nowhere"):
        await ask(raw, path)
    await records.finished(3)
    shown = await scrape(raw)
    assert shown.all("tornadoproxy_plugin_errors_total") == {("forgetful", "logged"): 3}


async def test_no_figure_names_anybody(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(METRICS="yes")
    client = await raw()
    headers = [("X-Claude-Code-Session-Id", "a-session")]
    await client.send(
        request_bytes("POST", "/v1/messages?who=somebody", headers, MESSAGE, token=TEST_TOKEN)
    )
    await client.response()
    await records.finished()
    lines = (await ask(raw, "/metrics")).body.decode().splitlines()
    # a plugin may have the name of a principal
    text = "\n".join(line for line in lines if not line.startswith("tornadoproxy_plugin_errors"))
    for each in (TEST_TOKEN, "somebody", "a-session", "127.0.0.1", '"token"'):
        assert each not in text


# -- what is counted of a record


def test_the_figures_of_the_moment_are_shown() -> None:
    shown = counted()
    assert shown.value("tornadoproxy_in_flight") == 3
    assert shown.value("tornadoproxy_waiting") == 1
    assert shown.value("tornadoproxy_held_bytes") == 4096
    assert shown.value("tornadoproxy_draining") == 1
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
    ("path", "kind"),
    [
        ("/v1/messages", "messages"),
        ("/v1/messages/count_tokens", "count_tokens"),
        ("/v1/messages/batches", "batches"),
        ("/v1/messages/batches/b_1/results", "batches"),
        ("/v1/files", "files"),
        ("/v1/files/f_1/content", "files"),
        ("/v1/models", "models"),
        ("/v1/models/claude-x", "models"),
        ("/openai/v1/chat/completions", "chat_completions"),
        ("/openai/chat/completions", "chat_completions"),
        ("/openai/v1/models/claude-x", "models"),
        ("/openai/models", "models"),
        ("/v1/messages/", "other"),
        ("/v1/filesystem", "other"),
        ("/openai/v1/embeddings", "other"),
        ("/", "other"),
    ],
)
def test_a_path_is_told_as_a_kind_of_route(path: str, kind: str) -> None:
    assert route_class(path) == kind


def test_paths_do_not_make_series() -> None:
    paths = (
        f"{prefix}{number}" for number in range(300) for prefix in ("/", "/v1/models/", "/v1/")
    )
    shown = counted(*(record(route=path) for path in paths))
    routes = {labels[1] for labels in shown.all("tornadoproxy_requests_total")}
    assert routes == {"other", "models"}


def test_models_beyond_fifty_share_their_figures() -> None:
    usage = Usage(input_tokens=1, output_tokens=2)
    records = [record(model=f"model-{number}", usage=usage, cost=10**9) for number in range(60)]
    shown = counted(*records, *records)
    tokens = shown.all("tornadoproxy_tokens_total")
    assert len({model for model, _ in tokens}) == figures.MAX_MODELS + 1
    assert tokens["model-0", "output"] == 4
    assert tokens["model-49", "input"] == 2
    assert tokens["other", "output"] == 40
    assert shown.value("tornadoproxy_cost_usd_total", model="other") == 20


def test_what_has_no_price_is_not_free() -> None:
    usage = Usage(input_tokens=1, output_tokens=2)
    shown = counted(
        record(usage=usage, model="new"),
        record(usage=usage, model=None),
        record(usage=usage, model="known", cost=0),
        record(usage=Usage(), model="silent"),
        record(usage=Usage(partial=True), model=None),
    )
    assert shown.all("tornadoproxy_unpriced_requests_total") == {
        ("new",): 1,
        ("unknown",): 2,
    }
    assert shown.value("tornadoproxy_cost_usd_total", model="new") == 0


def test_each_model_of_a_response_has_its_own_figures() -> None:
    others = (ModelUsage("opus", Usage(200, 50), cost=9 * 10**8), ModelUsage("opus", Usage(1), 1))
    used = Usage(10, 1, others=others)
    shown = counted(
        record(usage=used, model="sonnet", cost=10**9 + 1),
        record(usage=used, model="sonnet", cost=None),
    )
    tokens = shown.all("tornadoproxy_tokens_total")
    assert (tokens["sonnet", "input"], tokens["opus", "input"]) == (20, 402)
    assert (tokens["sonnet", "output"], tokens["opus", "output"]) == (2, 100)
    assert shown.all("tornadoproxy_cost_usd_total") == {
        ("sonnet",): pytest.approx(0.1),
        ("opus",): pytest.approx(0.900000001),
    }
    unpriced = shown.all("tornadoproxy_unpriced_requests_total")
    assert unpriced == {("sonnet",): 1, ("opus",): 1}


def test_tokens_add_up_to_all_tokens() -> None:
    usages = [
        Usage(input_tokens=1, cache_creation_input_tokens=10),
        Usage(input_tokens=1, cache_creation_input_tokens=10, cache_creation_1h_input_tokens=4),
        Usage(output_tokens=5, cache_read_input_tokens=3, partial=True),
    ]
    shown = counted(*(record(usage=usage) for usage in usages))
    tokens = {kind: count for (_, kind), count in shown.all("tornadoproxy_tokens_total").items()}
    assert tokens == {
        "input": 2,
        "output": 5,
        "cache_read": 3,
        "cache_creation_5m": 16,
        "cache_creation_1h": 4,
    }


def test_an_error_of_a_page_is_none_of_the_upstream() -> None:
    shown = counted(record(route="/page", status=503, upstream_time=None))
    assert shown.all("tornadoproxy_upstream_errors_total") == {}


def test_clocks_that_disagree_make_no_negative_overhead() -> None:
    shown = counted(record(duration=1.0, upstream_time=1.1))
    labels = {"dialect": "anthropic", "route": "messages"}
    assert shown.value("tornadoproxy_overhead_seconds_sum", **labels) == 0
    assert shown.value("tornadoproxy_overhead_seconds_bucket", **labels, le="0.0005") == 1


def test_names_are_as_prometheus_wants_them() -> None:
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


def everything() -> Scrape:
    """A scrape in which every sample is there."""
    return counted(
        record(usage=Usage(1, 2), cost=3),
        record(status=401, principal=None, outcome=Outcome.DENIED, error="AuthenticationFailed: x"),
        record(status=502, outcome=Outcome.FAILED, error="UpstreamClosed: x"),
    )


def test_the_dashboard_shows_only_what_there_is() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    labels = everything().labels()
    used = set()
    for panel in panels(document):
        for target in panel.get("targets", ()):
            names = re.findall(r"\b(?:tornadoproxy|process)_\w+", target["expr"])
            assert names, target["expr"]
            used |= set(names)
            for name in names:
                assert name in labels, f"{panel['title']}: nobody exports {name}"
            offered = set().union(*(labels[name] for name in names)) | {"job", "instance"}
            told = ", ".join(re.findall(r"by \(([^)]*)\)", target["expr"]))
            grouped = {each.strip() for each in told.split(",") if each.strip()}
            selected = set(re.findall(r"(\w+)=~?\"", target["expr"]))
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert grouped | selected | shown <= offered
            # what a sum does not keep cannot be shown
            if "sum" in target["expr"]:
                assert shown <= grouped
    ours = {name for name in labels if name.startswith("tornadoproxy_")}
    missing = {name for name in ours if not name.endswith(("_sum", "_count"))} - used
    assert missing == set(), "every figure has its panel"


def test_the_dashboard_can_be_imported() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert document["title"] == "tornadoproxy"
    assert "id" not in document, "the number that one Grafana gave it"
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


def test_the_dashboards_variables_are_labels() -> None:
    document = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            (name,) = re.findall(r"label_values\((\w+)", variable["definition"])
            assert name in everything().labels()


async def test_a_scrape_while_it_drains_tells_so(
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
    await waiting.send(request_bytes("POST", "/v1/messages", body=MESSAGE, token=TEST_TOKEN))
    await upstream.received()
    # the request has begun before the drain does, so that its connection is not an idle one
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
