"""docs/plugins.md, docs/anthropic.md and docs/openai.md, compared with the code and run."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
from tornadoproxy_prices.shipped import SHIPPED

import tornadoproxy
from tornadoproxy import (
    ConfigurationError,
    Dialect,
    Identity,
    IncomingRequest,
    ModelRequest,
    ModelUsage,
    Outcome,
    PageRequest,
    PageResponse,
    Permit,
    RequestRecord,
    Setting,
    Status,
    Usage,
    errors,
    parsers,
    testing,
)
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.plugin import hookspecs, manager
from tornadoproxy.testing import (
    TEST_TOKEN,
    OpenRaw,
    Proxy,
    Records,
    ScriptedUpstream,
    StartProxy,
    clean_environment,
    json_response,
    message_document,
    request_bytes,
    silent_response,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tornado.httpclient import AsyncHTTPClient, HTTPResponse

Ask: TypeAlias = "Callable[..., Awaitable[HTTPResponse]]"

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ANTHROPIC = (DOCS / "anthropic.md").read_text(encoding="utf-8")
OPENAI = (DOCS / "openai.md").read_text(encoding="utf-8")
PLUGINS = (DOCS / "plugins.md").read_text(encoding="utf-8")

HOOKS = {
    name: value
    for name, value in vars(hookspecs).items()
    if hasattr(value, f"{hookspecs.PROJECT}_spec")
}


def sections(level: int) -> dict[str, str]:
    """The sections of docs/plugins.md by their headings, each up to the next of its level."""
    parts = re.split(rf"^{'#' * level} (.+)$", PLUGINS, flags=re.MULTILINE)
    return {
        heading: re.split(rf"^#{{2,{level}}} ", text, maxsplit=1, flags=re.MULTILINE)[0]
        for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def blocks(text: str, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def hook_sections() -> dict[str, tuple[list[str], str]]:
    """Each hook that has a section: its arguments there, and the text."""
    found = {}
    for heading, text in sections(3).items():
        signature = re.fullmatch(r"`(\w+)\((.*)\)`", heading)
        if signature:
            arguments = [each for each in signature[2].split(", ") if each]
            found[signature[1]] = (arguments, text)
    return found


def code_of(hook: str) -> str:
    (code,) = blocks(hook_sections()[hook][1])
    return code


def load(hook: str) -> object:
    """The plugin that stands in a hook's section, as an entry point would lead to it."""
    module = ModuleType(f"example_of_{hook}")
    exec(compile(code_of(hook), f"docs/plugins.md, {hook}", "exec"), vars(module))
    made_here = (each for each in vars(module).values() if inspect.isclass(each))
    classes = [each for each in made_here if each.__module__ == module.__name__]
    return classes[0] if classes else module


# -- the page and the contract


def test_hook_sections_match_the_hookspecs() -> None:
    assert list(hook_sections()) == list(HOOKS), "in the order of hookspecs.py"


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_section_has_kind_and_arguments_of_hookspec(hook: str) -> None:
    arguments, text = hook_sections()[hook]
    specification = HOOKS[hook]
    contract = inspect.getdoc(specification) or ""
    kind, manner = re.findall(r"^\*(\w+)\. (.+)\.\*$", text, re.MULTILINE)[0]

    assert arguments == list(inspect.signature(specification).parameters)
    told = re.findall(r"\b(Deciding|Observing|Declaring)\b", contract)
    assert kind in (told or ["Declaring", "Observing"])

    awaitable = "Awaitable" in str(inspect.signature(specification).return_annotation)
    assert manner.startswith("Sync or async, within" if awaitable else "Sync")
    assert ("PLUGIN_TIMEOUT" in manner) == (awaitable and "PLUGIN_TIMEOUT" in contract)
    seconds = {
        "startup": manager.STARTUP_TIMEOUT,
        "shutdown": manager.SHUTDOWN_TIMEOUT,
    }
    if hook in seconds:
        assert f"within {seconds[hook]:.0f} s" in manner


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_section_lists_results_and_exceptions(hook: str) -> None:
    text = hook_sections()[hook][1]
    contract = inspect.getdoc(HOOKS[hook]) or ""
    rows = re.findall(r"^\| (.+?) \| .*\|$", text, re.MULTILINE)

    assert rows[0] == "Result"
    assert any("exception" in row for row in rows)
    returned = str(inspect.signature(HOOKS[hook]).return_annotation)
    if "None" in returned:
        assert "`None`" in rows
    for name in re.findall(r"raise `(\w+)`|Raise `(\w+)`", contract):
        assert f"raise `{''.join(name)}`" in rows


@pytest.mark.parametrize("name", sorted({*tornadoproxy.__all__, *testing.__all__}))
def test_public_name_is_documented(name: str) -> None:
    assert re.search(rf"`[^`]*\b{name}\b[^`]*`", PLUGINS)


@pytest.mark.parametrize(
    "kind",
    [
        IncomingRequest,
        Identity,
        ModelRequest,
        Permit,
        RequestRecord,
        Usage,
        ModelUsage,
        Status,
        PageRequest,
        PageResponse,
    ],
)
def test_field_tables_match_the_types(kind: Any) -> None:
    if dataclasses.is_dataclass(kind):
        fields = [field.name for field in dataclasses.fields(kind)]
    else:
        fields = list(kind.__struct_fields__)
    rows = re.findall(r"^\| `(\w+)` \| ", sections(3)[f"`{kind.__name__}`"], re.MULTILINE)
    if kind is RequestRecord:
        assert rows == [*fields, "Outcome", *(each.value for each in Outcome)]
    else:
        assert rows == fields


def test_setting_and_parser_tables_match_the_code() -> None:
    text = sections(2)["Settings"]
    rows = re.findall(r"^\| `(\w+)` \| ", text, re.MULTILINE)
    assert rows == list(Setting.__struct_fields__)

    made_here = {name for name in parsers.__all__ if inspect.isfunction(getattr(parsers, name))}
    table = dict(
        re.findall(r"^\| `parsers\.(\w+)[^`]*` \| .+? \| `(.+?)`[^|]*\|$", text, re.MULTILINE)
    )
    assert table.keys() == made_here
    for name, returned in table.items():
        annotation = str(inspect.signature(getattr(parsers, name)).return_annotation)
        value = annotation.removeprefix("Callable[[str], ")
        assert returned.replace("\\|", "|") == (value if value == annotation else value[:-1]), name


def test_fixture_table_lists_every_fixture() -> None:
    rows = "".join(re.findall(r"^\| (`.+?) \| ", sections(2)["Tests"], re.MULTILINE))
    fixtures = {"proxy", "start_proxy", "upstream", "records", "ask", "raw", "http_client"}
    fixtures |= {"anthropic_client", "openai_client", "base_url"}
    assert set(re.findall(r"`(\w+)`", rows)) == fixtures


def test_example_table_lists_every_package() -> None:
    packages = {path.parent.name for path in (ROOT / "examples").glob("*/pyproject.toml")}
    assert set(re.findall(r"`examples/([\w-]+)`", PLUGINS)) == packages


def test_first_commands_write_the_described_package(tmp_path: Path) -> None:
    command, directory, *_ = blocks(sections(2)["The first one, in ten minutes"], "bash")[
        0
    ].splitlines()
    program, *arguments = command.split()
    assert program == "python"
    run(arguments, tmp_path)

    made = tmp_path / directory.removeprefix("cd ")
    assert (made / "pyproject.toml").is_file()
    assert list((made / "tests").glob("test_*.py"))
    code = (made / "tornadoproxy_team" / "__init__.py").read_text()
    assert '"TEAM_MODELS"' in code, "the setting that the page goes on with"


# -- the plugins on it


@pytest.fixture
def ask(http_client: AsyncHTTPClient) -> Ask:
    def ask(
        proxy: Proxy, path: str = "/v1/models", token: str = TEST_TOKEN, body: object = None
    ) -> Awaitable[HTTPResponse]:
        return http_client.fetch(
            proxy.url + path,
            method="GET" if body is None else "POST",
            body=None if body is None else json.dumps(body),
            headers={"x-api-key": token},
            raise_error=False,
        )

    return ask


MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}


async def test_declare_settings_works(start_proxy: StartProxy) -> None:
    proxy = await start_proxy(plugins={"team": load("declare_settings")}, TEAM="research")

    assert ("team", "serves research") in proxy.lines


def test_commands_works(tmp_path: Path) -> None:
    installed(tmp_path, "hello", "hello_command", code_of("commands"))

    assert "hello" in run(["-m", "tornadoproxy", "--help"], tmp_path)
    shown = run(["-m", "tornadoproxy", "hello", "Ann", "--host", "::1"], tmp_path)
    assert shown == "Hello, Ann. The proxy listens on ::1.\n"


async def test_configure_works(
    start_proxy: StartProxy,
    ask: Ask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    noon = ModuleType("time")
    monkeypatch.setattr(noon, "localtime", lambda: FakeTime(12), raising=False)

    async def at_noon(**hours: object) -> Proxy:
        plugin = load("configure")
        monkeypatch.setitem(plugin.authorize.__globals__, "time", noon)  # type: ignore[attr-defined]  # it has it
        return await start_proxy(plugins={"hours": plugin}, **hours)

    inactive = await at_noon()
    states = {info.name: info.state for info in inactive.plugins.describe()}
    assert states["hours"] == "inactive"

    at_work = await at_noon(OPENS=9, CLOSES=17)
    assert ("hours", "serves requests from 9 to 17 o'clock") in at_work.lines
    assert (await ask(at_work)).code == 200

    at_night = await at_noon(OPENS=20)
    refused = await ask(at_night)
    assert refused.code == 403
    assert b"Come back at 20" in refused.body

    with pytest.raises(ConfigurationError, match="CLOSES is not after OPENS"):
        await at_noon(OPENS=17, CLOSES=9)


@dataclasses.dataclass
class FakeTime:
    """An hour of the day."""

    tm_hour: int


async def test_credential_headers_works(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream, records: Records
) -> None:
    await start_proxy(plugins={"badge": load("credential_headers")})
    connection = await raw()
    badge = [("x-BADGE", "alices-long-badge")]
    await connection.send(request_bytes("GET", "/v1/models", badge, token=None))

    assert (await connection.response()).status == 200
    assert (await records.finished()).principal == "alice"
    assert upstream.requests[0].header("x-badge") is None


async def test_pages_works(start_proxy: StartProxy, ask: Ask) -> None:
    proxy = await start_proxy(plugins={"whoami": load("pages")})

    assert json.loads((await ask(proxy, "/whoami")).body) == "token"
    assert json.loads((await ask(proxy, "/whoami/groups")).body) == []
    assert (await ask(proxy, "/whoami", "wrong")).code == 401
    assert (await ask(proxy, "/whoami/else")).code == 404


async def test_startup_works(
    start_proxy: StartProxy,
    ask: Ask,
    http_client: AsyncHTTPClient,
    upstream: ScriptedUpstream,
) -> None:
    proxy = await start_proxy(plugins={"busy": load("startup")})
    idle = json.loads((await http_client.fetch(f"{proxy.url}/busy")).body)["in_flight"]
    upstream.script(silent_response())
    waiting = ask(proxy)
    await upstream.received()

    busy = json.loads((await http_client.fetch(f"{proxy.url}/busy")).body)["in_flight"]
    assert busy == idle + 1
    await proxy.server.drain()
    assert (await waiting).code == 503


async def test_shutdown_works(start_proxy: StartProxy, ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    proxy = await start_proxy(plugins={"diary": load("shutdown")}, DIARY=path)
    await ask(proxy)
    await ask(proxy, token="wrong")
    await proxy.server.drain()

    assert path.read_text() == "token completed\nNone denied\n"


async def test_authenticate_works(start_proxy: StartProxy, ask: Ask, records: Records) -> None:
    proxy = await start_proxy(plugins={"acme": load("authenticate")})

    responses = [
        await ask(proxy, token=token)
        for token in ("acme_alices-long-token", "acme_guess", TEST_TOKEN, "else")
    ]
    assert [response.code for response in responses] == [200, 401, 200, 401]
    assert b"ask for one of your own" in responses[1].body
    await records.finished(4)
    assert [record.principal for record in records.all] == ["alice", None, "token", None]
    assert records.all[0].groups == ("staff",)


async def test_admit_works(start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream) -> None:
    proxy = await start_proxy(plugins={"one": load("admit")}, UPSTREAM_FIRST_BYTE_TIMEOUT=0.5)
    upstream.script(silent_response())
    first = ask(proxy, "/v1/messages", body=MESSAGE)
    await upstream.received()

    second = await ask(proxy, "/v1/messages", body=MESSAGE)
    assert (second.code, second.headers["retry-after"]) == (429, "1")
    assert (await first).code == 504
    assert (await ask(proxy, "/v1/messages", body=MESSAGE)).code == 200, "its place is free again"


async def test_authorize_works(start_proxy: StartProxy, ask: Ask) -> None:
    proxy = await start_proxy(plugins={"staff": load("authorize"), "acme": load("authenticate")})
    opus = {**MESSAGE, "model": "claude-opus-5-5"}

    responses = [
        await ask(proxy, "/v1/messages", body=body, token=token)
        for token in (TEST_TOKEN, "acme_alices-long-token")
        for body in (MESSAGE, opus)
    ]
    assert [response.code for response in responses] == [200, 403, 200, 200]
    assert (await ask(proxy)).code == 200, "that is no message"
    elsewhere = {**MESSAGE, "fallbacks": [{"model": "claude-opus-5-5"}]}
    assert (await ask(proxy, "/v1/messages", body=elsewhere)).code == 403
    assert (await ask(proxy, "/v1/messages/batches", body={})).code == 403


async def test_price_works(
    start_proxy: StartProxy,
    ask: Ask,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    proxy = await start_proxy(plugins={"price": load("price")})
    usage = {"input_tokens": 7, "output_tokens": 3}
    upstream.script(json_response(message_document("Hi", model="claude-of-our-own", usage=usage)))
    await ask(proxy, "/v1/messages", body=MESSAGE)

    assert (await records.finished()).cost == 7 * 1_000 + 3 * 5_000


async def test_request_finished_works(
    start_proxy: StartProxy,
    ask: Ask,
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin = load("request_finished")
    proxy = await start_proxy(plugins={"slow": plugin})
    await ask(proxy)
    await records.finished()
    assert " took " not in caplog.text

    vars(plugin)["LONG"] = 0.0
    await ask(proxy)
    record = await records.finished(2)
    await proxy.server.drain()
    assert f"{record.request_id} took 0 s" in caplog.text


def test_tests_section_example_passes(pytester: pytest.Pytester) -> None:
    conftest, test = blocks(sections(2)["Tests"])
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_acme=test, acme=code_of("authenticate"))

    pytester.runpytest_inprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


def test_every_code_block_of_the_page_is_tested() -> None:
    tested = [code_of(hook) for hook in HOOKS] + blocks(sections(2)["Tests"])
    assert sorted(blocks(PLUGINS)) == sorted(tested)
    for hook in HOOKS:
        assert f"test_{hook}_works" in globals()


def test_entry_point_example_is_found(tmp_path: Path) -> None:
    (document,) = blocks(sections(2)["Packages"], "toml")
    name, module = re.findall(r'^(\w+) = "(\w+):\w+"$', document, re.MULTILINE)[0]
    installed(tmp_path, name, f"{module}:Busy", code_of("startup"))

    row = next(
        line.split()
        for line in run(["-m", "tornadoproxy", "plugins"], tmp_path).splitlines()
        if f" {name} " in line
    )
    assert row[-1] == "active"


# -- docs/anthropic.md


def test_error_table_has_the_types_of_statuses() -> None:
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", ANTHROPIC, re.MULTILINE)
    statuses = {error.status for error in subclasses(errors.ProxyError)} - {500}
    assert statuses <= {int(status) for status, _ in rows}

    for status, kind in rows:
        own_type = kind if kind == "billing_error" else None  # the plugin that refuses says so
        error = errors.ProxyError("…", status=int(status), error_type=own_type)
        document = json.loads(Dialect.ANTHROPIC.error_body(error, "req_…"))
        assert document["error"]["type"] == kind
        assert document.keys() == json.loads(blocks(ANTHROPIC, "json")[0]).keys()


def subclasses(kind: type[errors.ProxyError]) -> set[type[errors.ProxyError]]:
    found = set(kind.__subclasses__())
    return found.union(*(subclasses(each) for each in found))


async def test_header_table_lists_headers_that_are_removed(
    proxy: Proxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    lines = [line for line in ANTHROPIC.splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    end_here = {
        direction: {
            name
            for names, *cells in rows
            if len(cells) == 2 and cells[place] == "no"
            for name in re.findall(r"`([\w-]+)(?:\*)?`", names)
        }
        for place, direction in enumerate(("to upstream", "to the client"))
    }
    cross = {"anthropic-beta", "user-agent", "x-unheard-of", "anthropic-ratelimit-x", "retry-after"}
    assert len(end_here["to upstream"]) == 18
    assert len(end_here["to the client"]) == 13
    # the framing is the test's own, and Expect would have to be waited for
    left_out = {"connection", "transfer-encoding", "trailer", "upgrade", "expect"}
    a_name = {"access-control-": "access-control-allow-origin", "sec-fetch-": "sec-fetch-site"}
    sent = end_here["to upstream"] - left_out - {"authorization", "x-api-key"}
    sent = {a_name.get(name, name) for name in sent} | cross
    answered = {a_name.get(name, name) for name in end_here["to the client"] - left_out} | cross
    upstream.script(json_response({}, headers=dict.fromkeys(answered, "1")))
    connection = await raw()
    headers = dict.fromkeys(sent, "1")
    await connection.send(request_bytes("GET", "/v1/x", headers, token=TEST_TOKEN))

    response = await connection.response()
    arrived = {name.lower() for name, _ in upstream.requests[0].headers}
    assert arrived & sent == cross
    assert {name.lower() for name, _ in response.headers} & answered == cross


def test_limits_table_has_the_defaults() -> None:
    settings = {setting.name: setting for setting in CORE_SETTINGS}
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) ?(s|MB|kB)?\b", ANTHROPIC, re.MULTILINE)
    assert len(rows) == 8

    for name, value, unit in rows:
        text = value.replace(",", "").removesuffix(";") + (unit if unit != "s" else "")
        assert settings[name].parse(text) == settings[name].default


async def test_anthropic_example_prints_a_response(
    start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clean_environment(monkeypatch)
    proxy = await start_proxy()
    (code,) = blocks(ANTHROPIC)
    names: dict[str, Any] = {}  # Any: whatever it defines
    pasted = code.replace("http://localhost:8000", proxy.url)
    compiled = compile(pasted.replace("your-secret-token-here", TEST_TOKEN), "anthropic.md", "exec")
    await asyncio.to_thread(exec, compiled, names)

    assert "Why is the sky blue?" in capsys.readouterr().out
    names["client"].close()


def installed(directory: Path, name: str, entry: str, code: str) -> None:
    """Put a module into `directory` as if pip had installed it there."""
    module = entry.partition(":")[0]
    (directory / f"{module}.py").write_text(code)
    information = directory / f"{module}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[tornadoproxy]\n{name} = {entry}\n")


def run(arguments: list[str], directory: Path) -> str:
    """What Python prints; it must end with 0."""
    environment = {"UPSTREAM_API_KEY": "key", **os.environ, "PYTHONPATH": str(directory)}
    ran = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_openai_library_example_translates() -> None:
    (code,) = [block for block in blocks(OPENAI) if "chat_completions.parse" in block]
    request = {"model": "claude-opus-5-5", "messages": [{"role": "user", "content": "Hi"}]}
    names: dict[str, Any] = {
        "request_body": json.dumps(request).encode(),
        "response_body": json.dumps(message_document("Hello")).encode(),
    }
    exec(compile(code, "openai.md", "exec"), names)
    assert json.loads(names["translation"].body)["messages"][0]["role"] == "user"
    assert b"Hello" in names["completion"]


def test_cache_costs_follow_the_price_table() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", OPENAI, re.MULTILINE)
    assert len(rows) == 4
    rates = SHIPPED.rows["claude-opus-5"].rates
    for requests, *costs in rows:
        reads = (int(requests) - 1) * rates.cache_read
        writes = (rates.cache_write_5m, rates.cache_write_1h)
        costs_in_nanos = [int(requests) * rates.input, *(write + reads for write in writes)]
        assert [float(cost) for cost in costs] == [nanos / rates.input for nanos in costs_in_nanos]
