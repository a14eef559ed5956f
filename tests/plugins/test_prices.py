"""Usage and prices: what records tell, whatever the answer's form and however it ends."""

from __future__ import annotations

import argparse
import asyncio
import csv
import dataclasses
import gzip
import json
import logging
import random
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import brotli  # type: ignore[import-untyped]  # it has no types
import pytest
import zstandard
from tornadoproxy_prices import MAX_NAMED, PRICES_FILE, Pricer
from tornadoproxy_prices.shipped import SHIPPED

from tornadoproxy import ConfigurationError, Settings, Usage, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    bytes_response,
    error_response,
    json_response,
    message_document,
    message_events,
    request_bytes,
    sse_response,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tornadoproxy import RequestRecord
    from tornadoproxy.testing import (
        OpenRaw,
        RawResponse,
        Records,
        Response,
        ScriptedUpstream,
        StartProxy,
        UpstreamExchange,
    )

MODEL = "claude-sonnet-5-5"
ANTHROPIC, OPENAI = "/v1/messages", "/openai/v1/chat/completions"
OWN = """
date = 2026-11-01

[models.claude-opus-4]
input = 1
output = 2
cache_read = 0
cache_write_5m = 0.5
cache_write_1h = 0.75

[models.local]
aliases = ["local-model", "here"]
input = 0
output = 0.001
cache_read = 0
cache_write_5m = 0
cache_write_1h = 0
"""

Document = dict[str, Any]  # JSON


def configured(path: Path | None = None) -> Pricer:
    plugin = Pricer()
    plugin.configure(settings(path))
    return plugin


def settings(path: Path | None = None) -> Settings:
    defaults = Settings.defaults(PRICES_FILE)
    return defaults.replace({PRICES_FILE: PRICES_FILE.parse(str(path))}) if path else defaults


def asked(stream: bool = False) -> bytes:
    return json.dumps(
        {
            "model": MODEL,
            "max_tokens": 50,
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": stream,
        }
    ).encode()


async def ask(raw: OpenRaw, route: str = ANTHROPIC, *, stream: bool = False) -> RawResponse:
    connection = await raw()
    await connection.send(request_bytes("POST", route, body=asked(stream), token=TEST_TOKEN))
    return await connection.response()


# What it costs


@pytest.mark.parametrize(
    ("model", "usage", "nanos"),
    [
        # $2 and $10 for a million: 2,000 and 10,000 billionths a token
        ("claude-sonnet-5-5", Usage(1_000_000, 0), 2_000_000_000),
        ("claude-sonnet-5-5", Usage(5, 11), 5 * 2000 + 11 * 10_000),
        ("claude-sonnet-5-5", Usage(0, 0), 0),
        ("claude-sonnet-5-5", Usage(7, None), 14_000),
        ("claude-sonnet-5-5", Usage(None, 7), 70_000),
        ("claude-sonnet-5-5", Usage(7, 3, partial=True), 44_000),
        # $0.10, $2.50 and $4 for reading the cache, and for writing it for 5 minutes and an hour
        ("claude-sonnet-5-5", Usage(0, 0, cache_read_input_tokens=1000), 100_000),
        ("claude-sonnet-5-5", Usage(0, 0, cache_creation_input_tokens=1000), 2_500_000),
        ("claude-sonnet-5-5", Usage(0, 0, None, 1000, 400), 600 * 2500 + 400 * 4000),
        ("claude-sonnet-5-5", Usage(0, 0, None, 1000, 1000), 4_000_000),
        ("claude-sonnet-5-5", Usage(0, 0, None, None, 1000), 4_000_000),
        ("claude-sonnet-5-5", Usage(0, 0, web_search_requests=3), 30_000_000),
        ("claude-sonnet-5-5", Usage(0, 0, web_fetch_requests=3), 0),
        (
            "claude-opus-5-5",
            Usage(2095, 503, 51_234, 1200, 1000, 1),
            8_380_000 + 10_060_000 + 10_246_800 + 1_000_000 + 8_000_000 + 10_000_000,
        ),
        ("claude-opus-4-1-20250805", Usage(1000, 1000), 15_000_000 + 75_000_000),
        ("claude-3-haiku-20240307", Usage(3, 5, 7, 11, 0), 750 + 6250 + 210 + 3300),
        # another price for all of it where the prompt has more than 100,000 tokens
        ("claude-haiku-5-5", Usage(100_000, 10), 100_000 * 100 + 10 * 500),
        ("claude-haiku-5-5", Usage(100_001, 10), 100_001 * 500 + 10 * 2500),
        ("claude-haiku-5-5", Usage(1, 0, 99_999), 100 + 99_999 * 10),
        ("claude-haiku-5-5", Usage(1, 0, 100_000), 500 + 100_000 * 50),
        ("claude-haiku-5-5", Usage(1, 0, 0, 100_000), 500 + 100_000 * 625),
        ("claude-haiku-5-5", Usage(1, 200_000), 100 + 200_000 * 500),
    ],
)
def test_prices_worked_out_by_hand(model: str, usage: Usage, nanos: int) -> None:
    assert configured().price(model, usage) == nanos


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "unheard-of"])
def test_what_told_of_nothing_has_no_price(model: str) -> None:
    for usage in (Usage(), Usage(partial=True), Usage(cache_read_input_tokens=5)):
        assert configured().price(model, usage) is None


def test_no_cost_is_larger_than_a_database_takes() -> None:
    assert configured().price("claude-opus-4", Usage(2**63 - 1, 2**63 - 1)) == 2**63 - 1


@pytest.mark.parametrize(
    ("asked_for", "priced_as"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5-latest", "claude-sonnet-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-sonnet-4-0", "claude-sonnet-4"),
        ("claude-opus-4-20250514", "claude-opus-4"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
        ("claude-haiku-5-5", "claude-haiku-5-5"),
    ],
)
def test_models_are_known_by_other_names(
    asked_for: str, priced_as: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, usage = configured(), Usage(10, 10, 10, 10)
    assert plugin.price(asked_for, usage) == plugin.price(priced_as, usage)
    assert not caplog.records


def test_the_table_is_whole_and_dated() -> None:
    """Each current model's five prices stand in the relation that the price list gives them."""
    shipped = SHIPPED
    assert shipped.source == "https://platform.claude.com/docs/en/about-claude/pricing"
    assert shipped.date.isoformat() >= "2026-10-24"
    for name, row in shipped.rows.items():
        for rates in filter(None, (row.rates, row.long)):
            assert 0 < rates.cache_read < rates.input < rates.output == 5 * rates.input, name
            if name != "claude-3-haiku":  # its own prices for the cache are rounded
                assert rates.cache_write_5m * 4 == rates.input * 5, name
                assert rates.cache_write_1h == rates.input * 2, name


# A model that nobody knows


@pytest.mark.parametrize(
    "model",
    ["gpt-6", "", "claude-sonnet-5-5x", "claude", "claude-sonnet-5-5-2026", "CLAUDE-OPUS-5"],
)
def test_an_unknown_model_costs_as_much_as_the_dearest(model: str) -> None:
    plugin = configured()
    for usage in (
        Usage(10, 0),
        Usage(0, 10),
        Usage(0, 0, 10),
        Usage(0, 0, 0, 10),
        Usage(0, 0, 0, 9, 9),
    ):
        known = [plugin.price(name, usage) for name in SHIPPED.rows]
        assert plugin.price(model, usage) == max(cost for cost in known if cost is not None) > 0


def test_it_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    plugin = configured()
    for _ in range(3):
        plugin.price("gpt-6", Usage(1, 1))
        plugin.price("other", Usage(1, 1))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert "'gpt-6'" in lines[0]
    assert "PRICES_FILE" in lines[0]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_names_in_the_log_are_bounded_and_harmless(caplog: pytest.LogCaptureFixture) -> None:
    plugin = configured()
    plugin.price("evil\n2026-11-24 ERROR all is lost \x1b[31m" + "x" * 10_000, Usage(1, 1))
    for number in range(3 * MAX_NAMED):
        assert plugin.price(f"model-{number}", Usage(1, 1)) == 15_000 + 75_000
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MAX_NAMED
    assert all(line.isprintable() and line.isascii() and len(line) < 300 for line in lines)
    assert lines[-1].endswith("No other model will be named.")
    assert not any("No other" in line for line in lines[:-1])


# A file of one's own


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_a_file_replaces_rows_and_adds_to_them(own: Path) -> None:
    plugin = configured(own)
    for name in ("claude-opus-4", "claude-opus-4-0", "claude-opus-4-20250514"):
        assert plugin.price(name, Usage(1, 1, 1, 5, 2)) == 1000 + 2000 + 0 + 3 * 500 + 2 * 750
    for name in ("local", "local-model", "here", "here-latest"):
        assert plugin.price(name, Usage(1000, 3)) == 3
    assert plugin.price("claude-opus-5", Usage(1, 1)) == 5000 + 25_000
    assert plugin.price("claude-opus-5", Usage(0, 0, web_search_requests=1)) == 10_000_000


def test_the_line_at_start_says_which_prices_and_of_which_day(own: Path) -> None:
    shipped = SHIPPED
    plugin = Pricer()
    line = f"prices of {shipped.date} ({len(shipped.rows)} models)"
    assert plugin.configure(settings()) == line
    assert plugin.configure(settings(own)) == f"{line}, over them those of {own} of 2026-11-01 (2)"


def test_a_file_may_price_searches_alone(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("date = 2026-11-01\nweb_search = 2.5\n")
    usage = Usage(1, 0, web_search_requests=2)
    assert configured(path).price("claude-opus-5", usage) == 5000 + 2 * 2_500_000


def test_the_dearest_takes_a_files_rows_into_account(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(OWN.replace("output = 0.001", "output = 1000"))
    assert configured(path).price("unheard-of", Usage(1, 1)) == 15_000 + 1_000_000


async def test_the_file_is_read_again_with_the_settings(
    start_proxy: StartProxy, own: Path, raw: OpenRaw, records: Records
) -> None:
    own.write_text(OWN.replace("models.local", f"models.{MODEL}"))
    proxy = await start_proxy(PRICES_FILE=own)
    await ask(raw)
    first = await records.finished(1)
    assert first.cost == first.usage.output_tokens
    own.write_text(OWN.replace("models.local", f"models.{MODEL}").replace("0.001", "0.002"))
    proxy.reload()
    await ask(raw)
    second = await records.finished(2)
    assert second.usage.output_tokens
    assert second.cost == 2 * second.usage.output_tokens
    own.write_text("date = ")
    with pytest.raises(ConfigurationError, match="PRICES_FILE"):
        proxy.reload()
    await ask(raw)
    assert (await records.finished(3)).cost == second.cost


ROW = "input = 1\noutput = 2\ncache_read = 3\ncache_write_5m = 4\ncache_write_1h = 5\n"
GOOD = f"date = 2026-11-01\n[models.x]\n{ROW}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "needs the day that its prices are of: date = 2026-10-24"),
        ("date = '2026-11-01'", "needs the day that"),
        ("date = 2026-11-01T00:00:00Z", "needs the day that"),
        ("date = 2026-13-01", "is not TOML: "),
        ("<html>", "is not TOML: "),
        ("{" * 100_000, "is not TOML: "),
        ("a = " + "[" * 100_000, "is not TOML: "),
        ("date = 2026-11-01\nweb_search = " + "9" * 5000, "is not TOML: "),
        ("date = 2026-11-01\nweb_search = 1e99999999999999999999", "is not TOML: "),
        ("\x00", "is not TOML: "),
        ("#" * 1_100_000, "is larger than a file of prices can be"),
        ("dates = 2026-11-01", "has 'dates' in it, which means nothing there"),
        ("date = 2026-11-01\nsource = 7", "has a source that is no text"),
        ("date = 2026-11-01\nmodels = 7", "has a models that is no table"),
        ("date = 2026-11-01\nmodels.x = 7", "has a models.x that is no table"),
        ("date = 2026-11-01\nweb_search = -1", "has a web_search that is no number of"),
        ("date = 2026-11-01\nweb_search = true", "has a web_search that is no number of"),
        ("date = 2026-11-01\nweb_search = 1e-7", "has a web_search that is finer than 0.000001"),
        (GOOD.replace("output = 2\n", ""), "lacks output in models.x"),
        (GOOD.replace("output", "outputs"), "has 'outputs' in models.x, which means nothing"),
        (GOOD.replace("= 2\n", "= '2'\n"), "has a models.x.output that is no number of"),
        (GOOD.replace("= 2\n", "= -2\n"), "has a models.x.output that is no number of"),
        (GOOD.replace("= 2\n", "= nan\n"), "has a models.x.output that is no number of"),
        (GOOD.replace("= 2\n", "= inf\n"), "has a models.x.output that is no number of"),
        (GOOD.replace("= 2\n", "= 1e9\n"), "has a models.x.output that is no number of"),
        (GOOD.replace("= 2\n", "= false\n"), "has a models.x.output that is no number of"),
        (GOOD.replace("= 2\n", "= 0.0001\n"), "has a models.x.output that is finer than 0.001"),
        (GOOD.replace("= 2\n", "= 2.00001\n"), "has a models.x.output that is finer than 0.001"),
        (GOOD + "aliases = 'y'", "has a models.x.aliases that is no list of names"),
        (GOOD + "aliases = ['y', 7]", "has a models.x.aliases that is no list of names"),
        (GOOD + "aliases = ['x']", "has 'x' for models.x and models.x"),
        (GOOD + f"[models.y]\n{ROW}aliases = ['x']", "has 'x' for models.y and models.x"),
        (
            f"{GOOD}aliases = ['z']\n[models.y]\n{ROW}aliases = ['z']",
            "has 'z' for models.y and models.x",
        ),
        (GOOD + "long = 5", "has a models.x.long that is no table"),
        (GOOD + f"[models.x.long]\n{ROW}", "lacks over in models.x.long"),
        (GOOD + f"[models.x.long]\nover = 0\n{ROW}", "lacks over in models.x.long"),
        (GOOD + f"[models.x.long]\nover = 1.5\n{ROW}", "lacks over in models.x.long"),
        (GOOD + "[models.x.long]\nover = 5\ninput = 1", "lacks output in models.x.long"),
        (GOOD + f"[models.x.long]\nover = 5\nbelow = 5\n{ROW}", "has 'below' in models.x.long"),
        (GOOD + f"[models.x]\n{ROW}", "is not TOML: "),
        ("date = 2026-11-01\n[models.claude-2.1]\n" + ROW, "has '1' in models.claude-2, which"),
    ],
)
def test_a_bad_file_is_refused_in_a_line_that_names_the_row(
    tmp_path: Path, content: str, fault: str
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^must name a file of prices, but") as refused:
        PRICES_FILE.parse(str(path))
    line = str(refused.value)
    assert line.startswith(f"must name a file of prices, but '{path}' {fault}")
    assert "\n" not in line
    assert len(line) < 300 + len(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must name a readable file"):
        PRICES_FILE.parse(str(tmp_path / "missing.toml"))
    with pytest.raises(ValueError, match=r"readable file|cannot be read"):
        PRICES_FILE.parse(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        PRICES_FILE.parse(str(tmp_path / "latin"))


async def test_a_bad_file_stops_the_start(start_proxy: StartProxy, own: Path) -> None:
    own.write_text(OWN.replace("output = 2", "output = -2"))
    with pytest.raises(ConfigurationError) as refused:
        await start_proxy(PRICES_FILE=own)
    (line,) = refused.value.faults
    assert line.startswith("PRICES_FILE ")
    assert "models.claude-opus-4.output" in line


def test_what_is_shown_as_toml_is_a_good_file_of_ones_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    path.write_text(shown(capsys, "toml"))
    assert PRICES_FILE.parse(str(path)) == dataclasses.replace(SHIPPED, path=path)


# The command


def shown(
    capsys: pytest.CaptureFixture[str], form: str | None = None, path: Path | None = None
) -> str:
    (command,) = Pricer().commands()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = parser.parse_args(["--format", form] if form else [])
    assert command.run(arguments, settings(path)) == 0
    return capsys.readouterr().out


def test_the_command_shows_the_prices_in_force(
    capsys: pytest.CaptureFixture[str], own: Path
) -> None:
    table = shown(capsys, path=own)
    words = [line.split() for line in table.splitlines()]
    assert ["claude-opus-5-5", "4.00", "20.00", "0.20", "5.00", "8.00"] in words
    assert ["claude-opus-4", "1.00", "2.00", "0.00", "0.50", "0.75"] in words
    assert ["local", "0.00", "0.001", "0.00", "0.00", "0.00"] in words
    long = ["claude-haiku-5-5,", "prompts", "over", "0.50", "2.50", "0.05", "0.625", "1.00"]
    assert words[words.index(long) + 1] == ["100,000"]
    assert "10.00 for a thousand web searches" in table
    assert f"{own} of 2026-11-01" in table
    assert "prices of 2026-" in table


def test_the_command_shows_them_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(shown(capsys, "csv").splitlines()))
    document = json.loads(shown(capsys, "json"))
    assert document["web_search"] == 10
    assert document["date"] == SHIPPED.date.isoformat()
    assert len(document["prices"]) == len(rows) == len(SHIPPED.rows) + 1
    for row, told in zip(rows, document["prices"], strict=True):
        assert row["model"] == told["model"]
        assert all(float(row[name]) == told[name] for name in told if name != "model")
    haiku = [row for row in rows if row["model"] == "claude-haiku-5-5"]
    assert [row["over"] for row in haiku] == ["0", "100000"]
    assert [row["cache_write_5m"] for row in haiku] == ["0.125", "0.625"]


# What an answer consumed, through the proxy


def message(usage: Document, *content: Document, stop_reason: str = "end_turn") -> Document:
    return message_document(
        model=MODEL, content=content or [TEXT], stop_reason=stop_reason, usage=usage
    )


TEXT = {"type": "text", "text": "Grüße, 世界 😀"}
SHAPES = {
    "plain": (message({"input_tokens": 25, "output_tokens": 15}), Usage(25, 15)),
    "cache": (
        message(
            {
                "input_tokens": 3,
                "cache_creation_input_tokens": 5000,
                "cache_read_input_tokens": 20_000,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 3000,
                    "ephemeral_1h_input_tokens": 2000,
                },
                "output_tokens": 15,
            }
        ),
        Usage(3, 15, 20_000, 5000, 2000),
    ),
    "server tools": (
        message(
            {
                "input_tokens": 700,
                "output_tokens": 80,
                "server_tool_use": {"web_search_requests": 3, "web_fetch_requests": 2},
            },
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            TEXT,
            stop_reason="pause_turn",
        ),
        Usage(700, 80, web_search_requests=3, web_fetch_requests=2),
    ),
    "tool use": (
        message(
            {"input_tokens": 30, "output_tokens": 60},
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"usage": {"x": 9}}},
            stop_reason="tool_use",
        ),
        Usage(30, 60),
    ),
    "thinking": (
        message(
            {"input_tokens": 30, "output_tokens": 400},
            {"type": "thinking", "thinking": "Hm. So it is.", "signature": "EqoBCkgIARABGAIi"},
            TEXT,
        ),
        Usage(30, 400),
    ),
    "refusal": (
        message({"input_tokens": 30, "output_tokens": 2}, stop_reason="refusal"),
        Usage(30, 2),
    ),
}
ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda body: bytes(brotli.compress(body)),
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
}


def response_of(document: Document, *, stream: bool, encoding: str, split: int | None) -> Response:
    headers = {} if encoding == "identity" else {"Content-Encoding": encoding}
    pack = ENCODINGS[encoding]
    if stream:
        packed = pack(b"".join(message_events(document)))
        return sse_response(packed, split=split, headers=headers)
    return bytes_response(
        pack(json.dumps(document).encode()), {"Content-Type": "application/json", **headers}
    )


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize(
    ("route", "encoding"),
    [*((ANTHROPIC, encoding) for encoding in ENCODINGS), (OPENAI, "identity")],
)
@pytest.mark.parametrize("name", SHAPES)
async def test_a_record_tells_what_the_upstream_counted(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    raw: OpenRaw,
    records: Records,
    name: str,
    route: str,
    encoding: str,
    stream: bool,
) -> None:
    await start_proxy()
    document, told = SHAPES[name]
    for count, split in enumerate((None, 1, 50) if stream else (None,), 1):
        upstream.script(response_of(document, stream=stream, encoding=encoding, split=split))
        assert (await ask(raw, route, stream=stream)).status == 200
        record = await records.finished(count)
        assert record.usage == told
        assert record.model == MODEL
        assert record.stop_reason == document["stop_reason"]
        assert record.outcome == "completed"
        assert record.cost == configured().price(MODEL, told)
        if stream:
            assert record.time_to_first_byte is not None
            assert record.time_to_first_token is not None
            assert record.time_to_first_byte <= record.time_to_first_token <= record.duration
        else:
            assert record.time_to_first_token is None


@pytest.mark.parametrize("route", [ANTHROPIC, OPENAI])
async def test_an_error_consumed_nothing(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    raw: OpenRaw,
    records: Records,
    route: str,
) -> None:
    await start_proxy()
    upstream.script(error_response(529, "overloaded_error", "Overloaded"))
    assert (await ask(raw, route)).status == 529
    record = await records.finished()
    assert (record.usage, record.cost, record.stop_reason) == (Usage(), None, None)


@pytest.mark.parametrize("route", [ANTHROPIC, OPENAI])
async def test_a_cut_document_may_have_consumed_anything(
    start_proxy: StartProxy,
    upstream: ScriptedUpstream,
    raw: OpenRaw,
    records: Records,
    route: str,
) -> None:
    await start_proxy()
    body = json.dumps(SHAPES["plain"][0]).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body) + 1)}

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, headers)
        await exchange.send(body[:-1])
        exchange.close()

    upstream.script(response)
    connection = await raw()
    last = {"Connection": "close"}
    await connection.send(request_bytes("POST", route, last, asked(), token=TEST_TOKEN))
    with suppress(ConnectionResetError):
        await connection.read_to_end()
    record = await records.finished()
    assert (record.outcome, record.usage, record.cost) == ("failed", Usage(partial=True), None)


async def test_an_answer_that_nobody_here_unpacks_may_have_consumed_anything(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    await start_proxy()
    headers = {"Content-Type": "application/json", "Content-Encoding": "x-of-tomorrow"}
    upstream.script(bytes_response(b"?", headers))
    assert (await ask(raw)).body == b"?"
    record = await records.finished()
    assert (record.outcome, record.usage) == ("completed", Usage(partial=True))


async def test_an_unknown_model_is_not_free(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    await start_proxy()
    document = {**SHAPES["plain"][0], "model": "claude-of-tomorrow"}
    upstream.script(json_response(document))
    await ask(raw)
    assert (await records.finished()).cost == 25 * 15_000 + 15 * 75_000


async def test_another_plugin_may_know_better(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    class Contract:
        @hookimpl
        def price(self, model: str, usage: Usage) -> int:
            return 7

    await start_proxy(plugins=[Contract()])
    await ask(raw)
    assert (await records.finished()).cost == 7


async def test_without_it_nothing_has_a_price(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    await start_proxy(DISABLED_PLUGINS="prices")
    await ask(raw)
    record = await records.finished()
    assert record.usage.output_tokens
    assert record.cost is None


# Streams that break off


@dataclasses.dataclass(frozen=True)
class Abort:
    """A stream that breaks off: where, and through whom."""

    number: int
    body: bytes
    start: int  # the length of its message_start
    whole: bool
    by: str
    route: str

    @classmethod
    def at_random(cls, number: int, pick: random.Random) -> Abort:
        usage = {"input_tokens": number + 1, "output_tokens": 40, "cache_read_input_tokens": 7}
        words = " ".join(["word"] * pick.randrange(30))
        events = message_events(message(usage, {"type": "text", "text": words}))
        body = b"".join(events)
        boundaries = [len(b"".join(events[:count])) for count in range(len(events) + 1)]
        cut = pick.choice([*boundaries, pick.randrange(len(body))])
        return cls(
            number=number,
            body=body[:cut],
            start=len(events[0]),
            whole=cut == len(body),
            by=pick.choice(["upstream", "client"]),
            route=pick.choice([ANTHROPIC, OPENAI]),
        )

    @property
    def request_id(self) -> str:
        return f"req_{self.number}"

    @property
    def response(self) -> Response:
        headers = {"Request-Id": self.request_id}
        pieces = [self.body] if self.body else []
        if self.by == "upstream":
            return sse_response(pieces, headers=headers, end="close")
        return sse_response(pieces, headers=headers, end="hang")

    def check(self, record: RequestRecord) -> None:
        usage = record.usage
        if self.by == "client" and self.route == OPENAI:
            # the client cannot know how much of it has come as far as the proxy
            assert usage.input_tokens in {None, self.number + 1}
            assert usage.partial or self.whole
        else:
            begun = len(self.body) >= self.start
            assert usage.input_tokens == (self.number + 1 if begun else None)
            assert usage.cache_read_input_tokens == (7 if begun else None)
            assert usage.partial != self.whole
            assert not self.whole or usage.output_tokens == 40
        if usage.input_tokens is None:
            assert record.cost is None
        else:
            assert usage.output_tokens is not None
            assert 1 <= usage.output_tokens <= 60
            assert record.model == MODEL
            expected = usage.input_tokens * 2000 + usage.output_tokens * 10_000 + 7 * 100
            assert record.cost == expected


@pytest.mark.gen_test(timeout=55)
async def test_of_1000_streams_that_break_off_none_is_missing_or_double(
    start_proxy: StartProxy, upstream: ScriptedUpstream, raw: OpenRaw, records: Records
) -> None:
    await start_proxy()
    pick = random.Random(5)
    aborts = [Abort.at_random(number, pick) for number in range(1000)]
    upstream.script(*(abort.response for abort in aborts))
    # an answer is for whoever asks next, so that one at a time asks on the route of the next
    asking = asyncio.Lock()
    upcoming = iter(aborts)

    async def work() -> None:
        while True:
            async with asking:
                abort = next(upcoming, None)
                if abort is None:
                    return
                connection = await raw()
                request = request_bytes("POST", abort.route, body=asked(True), token=TEST_TOKEN)
                await connection.send(request)
                await upstream.received(abort.number + 1)
            if abort.by == "upstream":
                with suppress(ConnectionResetError):
                    await connection.read_to_end()
                continue
            await connection.head()
            if abort.route == ANTHROPIC:
                seen = 0
                while seen < len(abort.body):
                    seen += len(await connection.chunk())
            await connection.close()

    await asyncio.gather(*(work() for _ in range(20)))
    await records.finished(1000)
    upstream.script(sse_response(message_events(SHAPES["plain"][0])))
    await ask(raw, stream=True)
    await records.finished(1001)
    by_id = {record.request_id: record for record in records.all}
    assert len(records.all) == len(by_id) == 1001
    for abort in aborts:
        abort.check(by_id[abort.request_id])
