"""The plugin prices: the cost of usage, price files, and the command ``prices``."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest
from people import run_command
from scene import Scene
from tornadoproxy_prices import MAX_NAMED, PRICES_FILE, Pricer
from tornadoproxy_prices.shipped import SHIPPED

from tornadoproxy import Settings, Usage, hookimpl

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


def configured(path: Path | None = None) -> Pricer:
    plugin = Pricer()
    plugin.configure(settings(path))
    return plugin


def settings(path: Path | None = None) -> Settings:
    defaults = Settings.defaults(PRICES_FILE)
    return defaults.replace({PRICES_FILE: PRICES_FILE.parse(str(path))}) if path else defaults


@pytest.mark.parametrize(
    ("model", "usage", "nanos"),
    [
        # $2 and $10 for a million: 2,000 and 10,000 billionths a token
        ("claude-sonnet-5-5", Usage(5, 11), 5 * 2000 + 11 * 10_000),
        ("claude-sonnet-5-5", Usage(0, 0), 0),
        ("claude-sonnet-5-5", Usage(7, None), 14_000),
        ("claude-sonnet-5-5", Usage(None, 7), 70_000),
        ("claude-sonnet-5-5", Usage(7, 3, partial=True), 44_000),
        # $0.10, $2.50 and $4 for reading the cache, and for writing it for 5 minutes and an hour
        ("claude-sonnet-5-5", Usage(0, 0, cache_read_input_tokens=1000), 100_000),
        ("claude-sonnet-5-5", Usage(0, 0, None, 1000, 400), 600 * 2500 + 400 * 4000),
        ("claude-sonnet-5-5", Usage(0, 0, None, 1000, 1000), 4_000_000),
        ("claude-sonnet-5-5", Usage(0, 0, None, None, 1000), 4_000_000),
        ("claude-sonnet-5-5", Usage(0, 0, web_search_requests=3, web_fetch_requests=9), 30_000_000),
        # another price for all of it where the prompt has more than 100,000 tokens
        ("claude-haiku-5-5", Usage(100_000, 10), 100_000 * 100 + 10 * 500),
        ("claude-haiku-5-5", Usage(100_001, 10), 100_001 * 500 + 10 * 2500),
        ("claude-haiku-5-5", Usage(1, 0, 100_000), 500 + 100_000 * 50),
        ("claude-haiku-5-5", Usage(1, 0, 0, 100_000), 500 + 100_000 * 625),
        ("claude-haiku-5-5", Usage(1, 200_000), 100 + 200_000 * 500),
    ],
)
def test_cost_of_usage(model: str, usage: Usage, nanos: int) -> None:
    assert configured().price(model, usage) == nanos


@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "unheard-of"])
def test_unknown_usage_has_no_cost(model: str) -> None:
    for usage in (Usage(), Usage(partial=True), Usage(cache_read_input_tokens=5)):
        assert configured().price(model, usage) is None


def test_cost_is_at_most_what_a_database_stores() -> None:
    assert configured().price("claude-opus-4", Usage(2**63 - 1, 2**63 - 1)) == 2**63 - 1


@pytest.mark.parametrize(
    ("asked_for", "priced_as"),
    [
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5@20250929", "claude-sonnet-4-5"),
        ("claude-sonnet-4-5-latest", "claude-sonnet-4-5"),
        ("claude-sonnet-4-0", "claude-sonnet-4"),
        ("claude-3-5-haiku-latest", "claude-3-5-haiku"),
    ],
)
def test_model_is_found_by_alias_or_dated_name(
    asked_for: str, priced_as: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugin, usage = configured(), Usage(10, 10, 10, 10)
    assert plugin.price(asked_for, usage) == plugin.price(priced_as, usage)
    assert not caplog.records


def test_built_in_table_has_the_ratios_of_the_price_list() -> None:
    assert SHIPPED.source == "https://platform.claude.com/docs/en/about-claude/pricing"
    assert SHIPPED.date.isoformat() >= "2026-10-24"
    for name, row in SHIPPED.rows.items():
        for rates in filter(None, (row.rates, row.long)):
            assert 0 < rates.cache_read < rates.input < rates.output == 5 * rates.input, name
            if name != "claude-3-haiku":  # its own prices for the cache are rounded
                assert rates.cache_write_5m * 4 == rates.input * 5, name
                assert rates.cache_write_1h == rates.input * 2, name


async def test_cost_comes_from_another_plugin_with_a_price(scene: Scene) -> None:
    class Contract:
        @hookimpl
        def price(self) -> int:
            return 7

    proxy = await scene.start(plugins={"zz_contract": Contract()})
    assert proxy.plugins.price("claude-sonnet-5-5", Usage(1)) == 7


@pytest.mark.parametrize("model", ["gpt-6", "", "claude-sonnet-5-5x", "claude-sonnet-5-5-2026"])
def test_unknown_model_costs_the_highest_prices(model: str) -> None:
    plugin = configured()
    of_each_kind = (Usage(10, 0), Usage(0, 10), Usage(0, 0, 10), Usage(0, 0, 0, 10))
    for usage in (*of_each_kind, Usage(0, 0, 0, 9, 9)):
        known = [plugin.price(name, usage) for name in SHIPPED.rows]
        assert plugin.price(model, usage) == max(cost for cost in known if cost is not None) > 0


def test_unknown_models_are_logged_bounded_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    plugin = configured()
    for _ in range(2):
        plugin.price("evil\n2026-11-24 ERROR all is lost \x1b[31m" + "x" * 10_000, Usage(1, 1))
    for number in range(3 * MAX_NAMED):
        assert plugin.price(f"model-{number}", Usage(1, 1)) == 15_000 + 75_000
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == MAX_NAMED
    assert "PRICES_FILE" in lines[1]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
    assert all(line.isprintable() and line.isascii() and len(line) < 300 for line in lines)
    assert lines[-1].endswith("No further model is named.")
    assert not any("No further" in line for line in lines[:-1])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(OWN)
    return path


def test_price_file_replaces_and_adds_rows(own: Path) -> None:
    plugin = configured(own)
    for name in ("claude-opus-4", "claude-opus-4-0", "claude-opus-4-20250514"):
        assert plugin.price(name, Usage(1, 1, 1, 5, 2)) == 1000 + 2000 + 0 + 3 * 500 + 2 * 750
    for name in ("local", "local-model", "here", "here-latest"):
        assert plugin.price(name, Usage(1000, 3)) == 3
    assert plugin.price("claude-opus-5", Usage(1, 1)) == 5000 + 25_000
    assert plugin.price("claude-opus-5", Usage(0, 0, web_search_requests=1)) == 10_000_000


def test_start_line_names_the_tables_and_their_dates(own: Path) -> None:
    plugin = Pricer()
    line = f"prices of {SHIPPED.date} ({len(SHIPPED.rows)} models)"
    assert plugin.configure(settings()) == line
    assert plugin.configure(settings(own)) == f"{line}, overridden by {own} of 2026-11-01 (2)"


def test_price_file_changes_the_highest_prices_and_searches(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("web_search = 2.5\n" + OWN.replace("output = 0.001", "output = 1000"))
    usage = Usage(1, 1, web_search_requests=2)
    assert configured(path).price("unheard-of", usage) == 15_000 + 1_000_000 + 2 * 2_500_000


def test_reload_reads_the_price_file(own: Path) -> None:
    plugin = configured(own)
    own.write_text(OWN.replace("0.001", "0.002"))
    assert plugin.price("local", Usage(0, 1)) == 1
    plugin.configure(settings(own))
    assert plugin.price("local", Usage(0, 1)) == 2


ROW = "input = 1\noutput = 2\ncache_read = 3\ncache_write_5m = 4\ncache_write_1h = 5\n"
DATE = "date = 2026-11-01\n"
GOOD = f"{DATE}[models.x]\n{ROW}"
SECOND = f"[models.y]\n{ROW}"
LONG = f"{GOOD}[models.x.long]\n{ROW}"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "lacks the date of its prices: date = 2026-10-24"),
        ("date = 2026-11-01T00:00:00Z", "lacks the date"),
        ("{" * 100_000, "is not TOML: "),
        (f"{DATE}web_search = " + "9" * 5000, "is not TOML: "),
        (f"{DATE}web_search = 1e99999999999999999999", "is not TOML: "),
        ("#" * 1_100_000, "is larger than 1,048,576 bytes"),
        ("dates = 2026-11-01", "has the unknown key 'dates' in the file"),
        (f"{DATE}source = 7", "has a source that is not a text"),
        (f"{DATE}models.x = 7", "has a models.x that is not a table"),
        (f"{DATE}web_search = -1", "has a web_search that is not a number of"),
        (f"{DATE}web_search = 1000001", "has a web_search that is not a number of"),
        (f"{DATE}web_search = true", "has a web_search that is not a number of"),
        (f"{DATE}web_search = 1e-7", "has a web_search that is finer than 0.000001"),
        (GOOD.replace("output = 2\n", ""), "lacks output in models.x"),
        (GOOD.replace("output", "outputs"), "has the unknown key 'outputs' in models.x"),
        *((GOOD.replace("= 2\n", f"= {price}\n"), f"has a models.x.output that is {fault}")
          for price, fault in (
              ("'2'", "not a number of"),
              ("nan", "not a number of"),
              ("0.0001", "finer than 0.001"),
          )),
        (GOOD + "aliases = ['y', 7]", "has a models.x.aliases that is not a list of names"),
        (GOOD + "aliases = ['x']", "has the name 'x' in both models.x and models.x"),
        (f"{GOOD}aliases = ['z']\n{SECOND}aliases = ['z']", "has the name 'z' in both models.y"),
        (GOOD + "long = 5", "has a models.x.long that is not a table"),
        (LONG, "lacks over in models.x.long"),
        (f"{LONG}over = 0\n", "lacks over in models.x.long"),
        (f"{LONG}over = 5\nbelow = 5\n", "has the unknown key 'below' in models.x.long"),
        (f"{DATE}[models.claude-2.1]\n{ROW}", "has the unknown key '1' in models.claude-2"),
    ],
)  # fmt: skip
def test_invalid_price_file_is_refused_in_a_line(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^must be a price file, but") as refused:
        PRICES_FILE.parse(str(path))
    line = str(refused.value)
    assert line.startswith(f"must be a price file, but '{path}' {fault}")
    assert "\n" not in line
    assert len(line) < 300 + len(str(path))


def test_unreadable_price_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"readable file|cannot be read"):
        PRICES_FILE.parse(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"# \xe9")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        PRICES_FILE.parse(str(tmp_path / "latin"))


def test_prices_as_toml_are_a_valid_price_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(shown("--format", "toml"))
    read = PRICES_FILE.parse(str(path))
    assert read is not None
    assert vars(read) == {**vars(SHIPPED), "path": path}


def shown(*arguments: str, own: Path | None = None) -> str:
    values = {PRICES_FILE: PRICES_FILE.parse(str(own))} if own else {}
    done = run_command(Pricer(), values, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_command_shows_the_prices_as_text(own: Path) -> None:
    table = shown(own=own)
    words = [line.split() for line in table.splitlines()]
    assert ["claude-opus-5-5", "4.00", "20.00", "0.20", "5.00", "8.00"] in words
    assert ["claude-opus-4", "1.00", "2.00", "0.00", "0.50", "0.75"] in words
    assert ["local", "0.00", "0.001", "0.00", "0.00", "0.00"] in words
    long = ["claude-haiku-5-5,", "prompts", "over", "0.50", "2.50", "0.05", "0.625", "1.00"]
    assert words[words.index(long) + 1] == ["100,000"]
    assert "10.00 for a thousand web searches" in table
    assert f"{own} of 2026-11-01" in table
    assert "prices of 2026-" in table


def test_command_shows_the_prices_as_csv_and_json() -> None:
    rows = list(csv.DictReader(shown("--format", "csv").splitlines()))
    document = json.loads(shown("--format", "json"))
    assert document["web_search"] == 10
    assert document["date"] == SHIPPED.date.isoformat()
    assert len(document["prices"]) == len(rows) == len(SHIPPED.rows) + 1
    for row, told in zip(rows, document["prices"], strict=True):
        assert row["model"] == told["model"]
        assert all(float(row[name]) == told[name] for name in told if name != "model")
    haiku = [row for row in rows if row["model"] == "claude-haiku-5-5"]
    assert [row["over"] for row in haiku] == ["0", "100000"]
    assert [row["cache_write_5m"] for row in haiku] == ["0.125", "0.625"]
