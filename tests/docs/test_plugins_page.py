"""docs/plugins.md: its tables describe the code, and its plugins run in a real proxy."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import hmac
import importlib.metadata
import inspect
import json
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from documents import PAGES, ROOT, blocks, first_cells, sections
from in_process import Commands
from scene import Scene

import tornadoproxy
from tornadoproxy import Outcome, RequestRecord, Setting, parsers, testing
from tornadoproxy.plugin import hookspecs, manager
from tornadoproxy.plugin.loading.discovery import find

pytest_plugins = ["pytester"]

PAGE = PAGES["plugins"]
CHAPTERS = sections(PAGE, 2)
HEADINGS = {
    re.sub(r"`|\(.*", "", heading): (heading, text) for heading, text in sections(PAGE, 3).items()
}
HOOKS = {
    name: value
    for name, value in vars(hookspecs).items()
    if hasattr(value, f"{hookspecs.PROJECT}_spec")
}
DEADLINES = {"startup": manager.STARTUP_TIMEOUT, "shutdown": manager.SHUTDOWN_TIMEOUT}


# -- the page and the code


def test_hook_sections_match_the_hookspecs() -> None:
    assert [name for name in HEADINGS if name in HOOKS] == list(HOOKS), "in the same order"


@pytest.mark.parametrize("hook", HOOKS)
def test_hook_section_describes_its_hookspec(hook: str) -> None:
    heading, text = HEADINGS[hook]
    contract = inspect.getdoc(HOOKS[hook]) or ""
    signature = inspect.signature(HOOKS[hook])
    returned = str(signature.return_annotation)
    assert heading == f"`{hook}({', '.join(signature.parameters)})`"

    kind, manner = re.findall(r"^\*(\w+)\. (.+)\.\*$", text, re.MULTILINE)[0]
    told = re.findall(r"\b(Deciding|Observing|Declaring)\b", contract)
    assert kind in (told or ["Declaring", "Observing"])
    assert manner.startswith("Sync or async, within" if "Awaitable" in returned else "Sync")
    if "Awaitable" in returned:
        within = f"within {DEADLINES[hook]:.0f} s" if hook in DEADLINES else "`PLUGIN_TIMEOUT`"
        assert within in manner

    results = re.findall(r"^\| (.+?) \| .*\|$", text, re.MULTILINE)
    assert results[0] == "Result"
    assert any("exception" in row for row in results)
    assert "None" not in returned or "`None`" in results
    for name in re.findall(r"[rR]aise `(\w+)`", contract):
        assert f"raise `{name}`" in results


def test_every_public_name_is_documented() -> None:
    names = {*tornadoproxy.__all__, *testing.__all__}
    assert [each for each in names if not re.search(rf"`[^`]*\b{each}\b[^`]*`", PAGE)] == []


@pytest.mark.parametrize(
    "kind",
    [
        *(tornadoproxy.IncomingRequest, tornadoproxy.Identity, tornadoproxy.ModelRequest),
        *(tornadoproxy.Permit, tornadoproxy.Usage, tornadoproxy.ModelUsage, tornadoproxy.Status),
        *(tornadoproxy.PageRequest, tornadoproxy.PageResponse, RequestRecord),
    ],
)
def test_field_table_matches_the_type(kind: Any) -> None:
    fields = getattr(kind, "__struct_fields__", None)
    names = list(fields or (field.name for field in dataclasses.fields(kind)))
    if kind is RequestRecord:
        names += ["Outcome", *Outcome]
    assert first_cells(HEADINGS[kind.__name__][1]) == names


def test_setting_and_parser_tables_match_the_code() -> None:
    text = CHAPTERS["Settings"]
    assert first_cells(text) == list(Setting.__struct_fields__)

    made_here = {name for name in parsers.__all__ if inspect.isfunction(getattr(parsers, name))}
    table = dict(
        re.findall(r"^\| `parsers\.(\w+)[^`]*` \| .+? \| `(.+?)`[^|]*\|$", text, re.MULTILINE)
    )
    assert table.keys() == made_here
    for name, returned in table.items():
        annotation = str(inspect.signature(getattr(parsers, name)).return_annotation)
        of_made = re.fullmatch(r"Callable\[\[str\], (.+)\]", annotation)
        assert returned.replace("\\|", "|") == (of_made[1] if of_made else annotation), name


def test_fixture_and_example_tables_list_all() -> None:
    rows = "".join(re.findall(r"^\| (`.+?) \| ", CHAPTERS["Tests"], re.MULTILINE))
    fixtures = {"proxy", "start_proxy", "upstream", "records", "ask", "raw", "http_client"}
    assert set(re.findall(r"\w+", rows)) == fixtures | {
        *("anthropic_client", "openai_client", "base_url")
    }
    packages = {path.parent.name for path in (ROOT / "examples").glob("*/pyproject.toml")}
    assert set(re.findall(r"`examples/([\w-]+)`", PAGE)) == packages


def test_first_commands_write_the_described_package(commands: Commands) -> None:
    write, enter, *_ = blocks(CHAPTERS["The first one, in ten minutes"], "bash")[0].splitlines()
    assert commands.run(*write.removeprefix("python -m tornadoproxy ").split()).status == 0
    made = commands.directory / enter.removeprefix("cd ")
    assert (made / "pyproject.toml").is_file()
    assert list((made / "tests").glob("test_*.py"))
    code = (made / "tornadoproxy_team" / "__init__.py").read_text()
    assert '"TEAM_MODELS"' in code, "the setting that the page goes on with"


# -- the plugins of the page


def code_of(hook: str) -> str:
    (code,) = blocks(HEADINGS[hook][1])
    return code


def load(hook: str) -> Any:
    """Return the plugin of a hook's section, as an entry point would name it."""
    module = ModuleType(f"example_of_{hook}")
    exec(compile(code_of(hook), f"docs/plugins.md, {hook}", "exec"), vars(module))
    if any(hasattr(each, f"{hookspecs.PROJECT}_impl") for each in vars(module).values()):
        return module
    made_here = (each for each in vars(module).values() if inspect.isclass(each))
    return next(each for each in made_here if each.__module__ == module.__name__)


def test_every_code_block_is_tested() -> None:
    tested = [code_of(hook) for hook in HOOKS] + blocks(CHAPTERS["Tests"])
    assert sorted(blocks(PAGE)) == sorted(tested)
    assert {f"test_{hook}_example" for hook in HOOKS} <= globals().keys()


MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "Hi"}],
}
MESSAGES, MODELS = "/v1/messages", "/v1/models"
ALICE = "acme_alices-long-token"


async def test_declare_settings_example(scene: Scene) -> None:
    proxy = await scene.start(plugins={"team": load("declare_settings")}, TEAM="research")
    assert ("team", "serves research") in proxy.lines


def test_commands_example(commands: Commands) -> None:
    commands.install("hello", code_of("commands"))
    assert "hello" in commands.run("--help").output
    shown = commands.run("hello", "Ann", "--host", "::1")
    assert shown.output == "Hello, Ann. The proxy listens on ::1.\n"


async def test_databases_example(scene: Scene, tmp_path: Path) -> None:
    counter = load("databases")()
    await scene.start(plugins=[counter], COUNTS_DB=tmp_path / "counts.db")
    for _ in range(2):
        assert (await scene.ask(MODELS)).status == 200
    await counter.database.run(lambda _: None)  # what was written behind is written first
    ((setting, made),) = counter.databases().items()
    assert setting.name == "COUNTS_DB"
    with made(tmp_path / "counts.db").reading() as connection:
        assert connection.execute("SELECT * FROM counts").fetchall() == [("token", 2)]


async def test_database_status_example(scene: Scene, tmp_path: Path) -> None:
    await scene.start(plugins={"notes": load("database_status")}, NOTES_DB=tmp_path / "notes.db")
    shown = json.loads((await scene.ask("/ready", token=None)).body)["databases"]["notes"]
    assert shown == {"NOTES_DB": {"failing": False, "failures": 0, "held": 0, "lost": 0}}


async def test_configure_example(scene: Scene) -> None:
    async def at_noon(**hours: object) -> testing.Proxy:
        plugin = load("configure")
        noon = SimpleNamespace(localtime=lambda: SimpleNamespace(tm_hour=12))
        plugin.authorize.__globals__["time"] = noon
        return await scene.start(plugins={"hours": plugin}, **hours)

    states = {info.name: info.state for info in (await at_noon()).plugins.describe()}
    assert states["hours"] == "inactive"
    at_work = await at_noon(OPENS=9, CLOSES=17)
    assert ("hours", "serves requests from 9 to 17 o'clock") in at_work.lines
    assert (await scene.ask(MODELS)).status == 200
    await at_noon(OPENS=20)
    refused = await scene.ask(MODELS)
    assert (refused.status, b"Come back at 20" in refused.body) == (403, True)
    with pytest.raises(tornadoproxy.ConfigurationError, match="CLOSES is not after OPENS"):
        await at_noon(OPENS=17, CLOSES=9)


async def test_credential_headers_example(scene: Scene) -> None:
    await scene.start(plugins={"badge": load("credential_headers")})
    response = await scene.ask(MODELS, headers={"x-BADGE": "alices-long-badge"}, token=None)
    assert response.status == 200
    assert (await scene.records.finished()).principal == "alice"
    assert scene.upstream.requests[0].header("x-badge") is None


async def test_pages_example(scene: Scene) -> None:
    await scene.start(plugins={"whoami": load("pages")})
    assert json.loads((await scene.ask("/whoami")).body) == "token"
    assert json.loads((await scene.ask("/whoami/groups")).body) == []
    assert (await scene.ask("/whoami", token="wrong")).status == 401
    assert (await scene.ask("/whoami/else")).status == 404


async def test_admin_api_example(scene: Scene) -> None:
    await scene.start(plugins={"rooms": load("admin_api")}, ADMIN_KEY=(key := "k" * 32))
    listed = await scene.ask("/v1/organizations/rooms?limit=2", token=key)
    document = json.loads(listed.body)
    assert ([each["id"] for each in document["data"]], document["has_more"]) == (
        ["atrium", "attic"],
        True,
    )
    assert (await scene.ask("/v1/organizations/rooms")).status == 401


async def test_sign_in_ways_example(scene: Scene) -> None:
    gateway = load("sign_in_ways")()
    await scene.start(plugins=[gateway], CONSOLE="yes")
    shown = await scene.ask("/console/sign-in", token=None)
    assert b"Sign in with the company&#x27;s gateway" in shown.body
    by = "/console/sign-in/gateway"
    away = await scene.ask(by, method="POST", token=None)
    assert (away.status, away.header("location")) == (303, f"{by}?next=/")
    assert (await scene.ask(by, token=None)).status == 401
    entered = await scene.ask(by, headers={"X-Gateway-User": "ann"}, token=None)
    cookie = (entered.header("set-cookie") or "").partition(";")[0]
    page = await scene.ask("/console/me", headers={"Cookie": cookie}, token=None)
    assert b"<span>ann</span>" in page.body
    (token,) = gateway.people
    assert (await scene.ask(MODELS, token=token.reveal().decode())).status == 200
    (form_token,) = re.findall(rb'name="form_token" value="([^"]+)"', page.body)
    await scene.ask(
        "/console/sign-out",
        method="POST",
        headers={"Cookie": cookie, "Content-Type": "application/x-www-form-urlencoded"},
        body=b"form_token=" + form_token,
        token=None,
    )
    assert gateway.people == {}


async def test_startup_example(scene: Scene) -> None:
    await scene.start(plugins={"busy": load("startup")})
    assert json.loads((await scene.ask("/busy", token=None)).body) == {"in_flight": 1}


async def test_shutdown_example(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "diary"
    proxy = await scene.start(plugins={"diary": load("shutdown")}, DIARY=path)
    await scene.ask(MODELS)
    await scene.ask(MODELS, token="wrong")
    await proxy.server.drain()
    assert path.read_text() == "token completed\nNone denied\n"


async def test_authenticate_example(scene: Scene) -> None:
    await scene.start(plugins={"acme": load("authenticate")})
    tokens = (ALICE, "acme_guess", testing.TEST_TOKEN, "else")
    responses = [await scene.ask(MODELS, token=token) for token in tokens]
    assert [response.status for response in responses] == [200, 401, 200, 401]
    assert b"ask for one of your own" in responses[1].body
    await scene.records.finished(4)
    assert [record.principal for record in scene.records.all] == ["alice", None, "token", None]
    assert scene.records.all[0].groups == ("staff",)


async def test_admit_example(scene: Scene) -> None:
    await scene.start(plugins={"one": load("admit")}, UPSTREAM_FIRST_BYTE_TIMEOUT=0.2)
    scene.upstream.script(testing.silent_response())
    first = asyncio.ensure_future(scene.ask(MESSAGES, MESSAGE))
    await scene.upstream.received()
    second = await scene.ask(MESSAGES, MESSAGE)
    assert (second.status, second.header("retry-after")) == (429, "1")
    assert (await first).status == 504
    assert (await scene.ask(MESSAGES, MESSAGE)).status == 200, "its place is free again"


async def test_authorize_example(scene: Scene) -> None:
    await scene.start(plugins={"staff": load("authorize"), "acme": load("authenticate")})
    opus = {**MESSAGE, "model": "claude-opus-5-5"}
    elsewhere = {**MESSAGE, "fallbacks": [{"model": "claude-opus-5-5"}]}
    for document, status in ((MESSAGE, 200), (opus, 403), (elsewhere, 403)):
        assert (await scene.ask(MESSAGES, document)).status == status
    assert (await scene.ask(MESSAGES, opus, token=ALICE)).status == 200
    assert (await scene.ask(MODELS)).status == 200, "that is no message"
    assert (await scene.ask("/v1/messages/batches", {})).status == 403


async def test_upstreams_example(scene: Scene, tmp_path: Path) -> None:
    file = tmp_path / "upstreams.toml"
    file.write_text(
        f'''
        [[upstream]]
        name = "ours"
        kind = "acme"
        team = "research"
        base_url = "{scene.upstream.url}"
        api_key = "k"
        '''
    )
    await scene.start(plugins={"acme": load("upstreams")}, UPSTREAMS_FILE=file)
    assert (await scene.ask(MODELS)).header("x-tornadoproxy-upstream") == "ours"
    (request,) = scene.upstream.requests
    assert request.target == f"/claude{MODELS}"
    assert (request.header("x-acme-team"), request.header("x-api-key")) == ("research", "k")
    file.write_text(file.read_text().replace("team", "taem"))
    with pytest.raises(tornadoproxy.ConfigurationError) as caught:
        await scene.start(plugins={"acme": load("upstreams")}, UPSTREAMS_FILE=file)
    assert caught.value.faults == (
        f"{file}, line 2: team is missing: upstreams of the kind acme need it",
        f"{file}, line 5: taem is unknown: did you mean team?",
    )


async def test_allowed_models_example(scene: Scene) -> None:
    class Interns:
        @tornadoproxy.hookimpl
        def authenticate(self) -> tornadoproxy.Identity:
            return tornadoproxy.Identity("kim", groups=("interns",))

    await scene.start(plugins={"small": load("allowed_models"), "interns": Interns()})
    listed = json.loads((await scene.ask(MODELS)).body)
    assert [model["id"] for model in listed["data"]] == ["claude-haiku-5-5"]
    assert (await scene.ask(MESSAGES, MESSAGE)).status == 403
    assert (await scene.ask(MESSAGES, {**MESSAGE, "model": "claude-haiku-5-5"})).status == 200


async def test_respond_example(scene: Scene) -> None:
    await scene.start(plugins={"retired": load("respond")})
    assert (await scene.ask(MESSAGES, MESSAGE)).status == 200
    assert len(scene.upstream.requests) == 1
    retired = await scene.ask(MESSAGES, {**MESSAGE, "model": "claude-opus-4-0"})
    assert (retired.status, b"use claude-opus-5-5, with /model." in retired.body) == (200, True)
    assert len(scene.upstream.requests) == 1


def test_choose_upstream_example() -> None:
    plugin = load("choose_upstream")
    identity = tornadoproxy.Identity("counsel", groups=("legal",))
    us, eu = "us-east", "eu-west"
    assert plugin.choose_upstream(None, tornadoproxy.Identity("other"), None, (us, eu)) is None
    assert plugin.choose_upstream(None, identity, None, (us, eu)) == [eu]
    with pytest.raises(tornadoproxy.Denied):
        plugin.choose_upstream(None, identity, None, (us,))


async def test_prepare_request_example(scene: Scene) -> None:
    await scene.start(plugins={"sign": load("prepare_request")})
    assert (await scene.ask(MESSAGES, MESSAGE)).status == 200
    (request,) = scene.upstream.requests
    secret = b"shared-with-that-team"
    signature = hmac.new(secret, request.body, hashlib.sha256).hexdigest()
    assert request.header("x-signature") == signature


async def test_observe_example(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "example_of_observe")
    await scene.start(plugins={"prompt": load("observe"), "acme": load("authenticate")})
    for token in (ALICE, testing.TEST_TOKEN):
        assert (await scene.ask(MESSAGES, MESSAGE, token=token)).status == 200
    await scene.records.finished(2)
    (told,) = [each for each in caplog.messages if " sent " in each]
    assert told.startswith(scene.records.all[0].request_id)
    assert "Hi" in told


async def test_price_example(scene: Scene) -> None:
    await scene.start(plugins={"price": load("price")})
    usage = {"input_tokens": 7, "output_tokens": 3}
    scene.upstream.script(
        testing.json_response(
            testing.message_document("Hi", model="claude-of-our-own", usage=usage)
        )
    )
    await scene.ask(MESSAGES, MESSAGE)
    assert (await scene.records.finished()).cost == 7 * 1_000 + 3 * 5_000


def test_request_finished_example(caplog: pytest.LogCaptureFixture) -> None:
    for seconds in (59.9, 60):
        load("request_finished").request_finished(testing.request_record(duration=seconds))
    assert caplog.messages == ["req_1 took 60 s"]


def test_tests_section_example_passes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    conftest, test = blocks(CHAPTERS["Tests"])
    # other plugins that are installed take long to import
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_acme=test, acme=code_of("authenticate"))
    pytester.runpytest_inprocess("-p", "pytest_tornado.plugin").assert_outcomes(passed=3)


def test_entry_point_example_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    (document,) = blocks(CHAPTERS["Packages"], "toml")
    ((name, value),) = tomllib.loads(document)["project"]["entry-points"]["tornadoproxy"].items()
    module = ModuleType("tornadoproxy_acme")
    vars(module)["Acme"] = load("startup")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = importlib.metadata.EntryPoint(name, value, hookspecs.PROJECT)
    (info,) = find((), [point]).described()
    assert (info.name, info.state) == ("acme", "active")
