"""Plugins that fail or hang in the real program, in every hook."""

from __future__ import annotations

import json
import re
import signal
from typing import TYPE_CHECKING

import pytest
from program import install, running

from tornadoproxy.testing import TEST_TOKEN, ScriptedServer, ScriptedUpstream, request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from program import Program

    from tornadoproxy.testing import RawResponse

CANARY = "sk-canary-key-51d0a7"

IMPORTS = """
import asyncio, pathlib, sys, threading
from tornadoproxy import Setting, hookimpl

# in no line of the source, which a traceback may show
CANARY = "-".join(["sk", "canary", "key", "51d0a7"])

class Canary(Exception):
    pass

def fail(way):
    match way:
        case "Canary": raise Canary(CANARY)
        case "SystemExit": sys.exit(0)
        case "SystemExit with a text": sys.exit(CANARY)
        case "KeyboardInterrupt": raise KeyboardInterrupt
        case "CancelledError": raise asyncio.CancelledError(CANARY)
        case "GeneratorExit": raise GeneratorExit
        case "StopIteration": raise StopIteration(CANARY)
        case "RecursionError": fail(way)
        case "coroutine": return asyncio.sleep(0)
        case "number": return 42
        case "object": return object()

async def fail_later(way):
    await asyncio.sleep(0)
    return fail(way)

async def hang():
    await asyncio.Event().wait()
"""

# what sys.exit() is called for must not end a proxy, least of all with the status 0
RAISING = (
    "Canary",
    "SystemExit",
    "SystemExit with a text",
    "KeyboardInterrupt",
    "CancelledError",
    "GeneratorExit",
    "StopIteration",
    "RecursionError",
)
NONSENSE = ("coroutine", "number", "object")


def name_of(way: str) -> str:
    return way.lower().replace(" ", "_")


def install_each(directory: Path, ways: tuple[str, ...], source: str) -> None:
    """Install a plugin for each way to fail; ``WAY`` in its source is the way."""
    for way in ways:
        install(directory, f"plugin_{name_of(way)}", IMPORTS + source.replace("WAY", repr(way)))


def faults(program: Program) -> list[str]:
    """What a program that has not started said, which is one line for each fault and no more."""
    lines = program.errors.all
    assert all(line.startswith("tornadoproxy: plugin ") for line in lines), lines
    assert program.output.all == []
    return lines


def check_each_is_named(lines: list[str], ways: tuple[str, ...]) -> None:
    assert [re.findall(r"'(plugin_\w+)'", line) for line in lines] == [
        [f"plugin_{name_of(way)}"] for way in sorted(ways, key=name_of)
    ]


def hanging(hook: str, *, stubborn: bool) -> str:
    return (
        IMPORTS
        + f"""
@hookimpl
async def {hook}():
    while True:
        try:
            await hang()
        except asyncio.CancelledError:
            if not {stubborn}:
                raise
"""
    )


async def ask(program: Program, path: str, session: str) -> RawResponse:
    headers = {"X-Claude-Code-Session-Id": session, "X-Way": session}
    return await program.ask(request_bytes("GET", path, headers, token=TEST_TOKEN))


# -- before it listens


async def test_failing_declare_settings_is_one_line_each(tmp_path: Path) -> None:
    # its own interruption cannot be told from the user's: see below
    ways = tuple(way for way in (*RAISING, *NONSENSE) if way != "KeyboardInterrupt")
    install_each(tmp_path, ways, "@hookimpl\ndef declare_settings():\n    return fail(WAY)\n")
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        assert await program.ended() == 2
    check_each_is_named(faults(program), ways)


async def test_failing_configure_is_one_line_each(tmp_path: Path) -> None:
    ways = (*RAISING, *NONSENSE)
    install_each(tmp_path, ways, "@hookimpl\ndef configure(settings):\n    return fail(WAY)\n")
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        assert await program.ended() == 2
    lines = faults(program)
    check_each_is_named(lines, ways)
    assert CANARY not in "\n".join(lines)


@pytest.mark.parametrize(
    "startup",
    [
        "def startup():\n    fail('SystemExit')",
        "async def startup():\n    await fail_later('Canary')",
        "async def startup():\n    await fail_later('KeyboardInterrupt')",
    ],
    ids=["SystemExit", "exception", "KeyboardInterrupt"],
)
async def test_failing_startup_is_one_line_and_status_2(tmp_path: Path, startup: str) -> None:
    """tests/plugin/test_lifecycle.py has every exception."""
    install(tmp_path, "plugin_odd", f"{IMPORTS}\n@hookimpl\n{startup}\n")
    # plugins that have started before are shut down
    before = f"@hookimpl\ndef shutdown():\n    pathlib.Path({str(tmp_path / 'end')!r}).touch()\n"
    install(tmp_path, "a_good_one", IMPORTS + before)
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        assert await program.ended() == 2
    (line,) = faults(program)
    assert "'plugin_odd' failed in startup: " in line
    assert CANARY not in line
    assert (tmp_path / "end").exists()


@pytest.mark.long
async def test_result_of_startup_is_ignored(tmp_path: Path) -> None:
    install_each(tmp_path, NONSENSE, "@hookimpl\ndef startup():\n    return fail(WAY)\n")
    async with ScriptedUpstream() as upstream, running(tmp_path, upstream) as program:
        assert (await ask(program, "/v1/models", "one")).status == 200


async def test_interrupt_during_plugin_import_is_no_traceback(tmp_path: Path) -> None:
    install(tmp_path, "plugin_odd", "raise KeyboardInterrupt")
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        assert await program.ended() == 130
    assert program.errors.all == []


@pytest.mark.parametrize("secret", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_failing_parser_is_one_line_without_value(tmp_path: Path, *, secret: bool) -> None:
    install(
        tmp_path,
        "plugin_odd",
        IMPORTS
        + f"""
KEYS = Setting("TEAM_KEYS", {{}}.__getitem__, default=None, help="Keys.", secret={secret})

@hookimpl
def declare_settings():
    return [KEYS]
""",
    )
    async with (
        ScriptedServer() as upstream,
        running(tmp_path, upstream, TEAM_KEYS=CANARY) as program,
    ):
        assert await program.ended() == 2
    (line,) = program.errors.all
    assert line.startswith("tornadoproxy: TEAM_KEYS ")
    assert "KeyError" in line
    assert CANARY not in line


@pytest.mark.long
@pytest.mark.timeout(120)
@pytest.mark.gen_test(timeout=100)
@pytest.mark.parametrize("stubborn", [False, True])
async def test_hanging_startup_ends_the_start_after_30_s(tmp_path: Path, *, stubborn: bool) -> None:
    install(tmp_path, "plugin_odd", hanging("startup", stubborn=stubborn))
    async with ScriptedServer() as upstream, running(tmp_path, upstream) as program:
        assert await program.ended(patience=60) == 2
    (line,) = faults(program)
    assert "'plugin_odd' failed in startup: no result within 30 s" in line


# -- on SIGHUP


async def test_configure_failing_on_sighup_keeps_the_settings(tmp_path: Path) -> None:
    way_file = tmp_path / "way"
    way_file.write_text("")
    configure = f"""
@hookimpl
def configure(settings):
    return fail(pathlib.Path({str(way_file)!r}).read_text())
"""
    install(tmp_path, "plugin_odd", IMPORTS + configure)
    tokens = tmp_path / "tokens"
    tokens.write_text(TEST_TOKEN)
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, AUTH_TOKEN=None, AUTH_TOKEN_FILE=str(tokens)) as program,
    ):
        await program.port()
        tokens.write_text("another-token-that-must-not-be-taken")
        for count, way in enumerate((*RAISING, *NONSENSE), start=1):
            way_file.write_text(way)
            program.send_signal(signal.SIGHUP)
            kept = "SIGHUP: the settings stay as they were: plugin 'plugin_odd'"
            await program.errors.wait_for(kept, count)
            assert (await ask(program, "/v1/models", way)).status == 200
        way_file.write_text("")
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded secrets and the settings of plugins")
        assert (await ask(program, "/v1/models", "the last")).status == 401
        assert CANARY not in "\n".join(program.errors.all)
        assert "Traceback" not in "\n".join(program.errors.all)


# -- while it serves


async def test_failing_authenticate_is_503_and_asks_no_upstream(tmp_path: Path) -> None:
    install(
        tmp_path,
        "plugin_odd",
        IMPORTS
        + """
@hookimpl
def authenticate(request):
    moment, _, way = request.headers.get("X-Way", "").partition(" ")
    if way == "hang":
        return hang()
    if way == "open":
        return None
    return fail_later(way) if moment == "later" else fail(way)
""",
    )
    sessions = [
        *(f"now {way}" for way in (*RAISING, *NONSENSE) if way != "coroutine"),
        *(f"later {way}" for way in (*RAISING, *NONSENSE)),
        "later hang",
    ]
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, PLUGIN_TIMEOUT="0.1") as program,
    ):
        for session in sessions:
            for path, shape in (
                ("/v1/models", {"type", "error", "request_id"}),
                ("/openai/v1/models", {"error"}),
            ):
                response = await ask(program, path, session)
                assert response.status == 503, session
                assert json.loads(response.body).keys() == shape
                assert response.header("retry-after")
                assert CANARY.encode() not in response.body
        assert upstream.connections == 0
        # it has survived all of them, and the next plugin decides as ever
        assert (await ask(program, "/v1/models", "now open")).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    records = [json.loads(line) for line in program.output.all]
    assert [record["session_id"] for record in records] == [
        *(session for session in sessions for _ in range(2)),
        "now open",
    ]
    told = [line for line in program.errors.all if "failed in authenticate" in line]
    # at 1, 2, 4, 8 …: what fails for every request must not fill the disk
    assert len(told) == (2 * len(sessions)).bit_length()
    assert CANARY not in "\n".join(program.errors.all)


async def test_failing_request_finished_changes_no_response(tmp_path: Path) -> None:
    observe = "@hookimpl\ndef request_finished(record):\n    return fail(record.session_id)\n"
    # asked before and after the access log, in the order of their names
    for name in ("a_failing", "z_failing"):
        install(tmp_path, name, IMPORTS + observe)
    async with ScriptedUpstream() as upstream, running(tmp_path, upstream) as program:
        connection = await program.connect()
        for session in (*RAISING, *NONSENSE):
            for path in ("/v1/models", "/openai/v1/models", "/v1//bad"):
                headers = {"X-Claude-Code-Session-Id": session}
                await connection.send(request_bytes("GET", path, headers, token=TEST_TOKEN))
                response = await connection.response()
                assert response.status == (400 if path == "/v1//bad" else 200)
                assert response.header("Connection") != "close"
        await connection.close()
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    records = [json.loads(line) for line in program.output.all]
    assert [record["session_id"] for record in records] == [
        session for session in (*RAISING, *NONSENSE) for _ in range(3)
    ]
    for name in ("a_failing", "z_failing"):
        assert f"plugin '{name}' failed in request_finished (1 so far)" in "\n".join(
            program.errors.all
        )


# -- at the end


async def test_failing_shutdown_stops_no_other_shutdown(tmp_path: Path) -> None:
    stop = "@hookimpl\nasync def shutdown():\n    return await fail_later(WAY)\n"
    install_each(tmp_path, RAISING, stop)
    install(
        tmp_path, "plugin_at_once", IMPORTS + stop.replace("await fail_later(WAY)", "sys.exit()")
    )
    # the last of all, since the order is the reverse of the start's
    last = f"@hookimpl\ndef shutdown():\n    pathlib.Path({str(tmp_path / 'end')!r}).touch()\n"
    install(tmp_path, "a_good_one", IMPORTS + last)
    async with ScriptedUpstream() as upstream, running(tmp_path, upstream) as program:
        assert (await ask(program, "/v1/models", "one")).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert (tmp_path / "end").exists()
    assert len(program.output.all) == 1
    told = re.findall(r"plugin '(\w+)' failed in shutdown", "\n".join(program.errors.all))
    assert sorted(told) == sorted(
        [*(f"plugin_{name_of(way)}" for way in RAISING), "plugin_at_once"]
    )


@pytest.mark.long
@pytest.mark.timeout(60)
@pytest.mark.gen_test(timeout=50)
@pytest.mark.parametrize("stubborn", [False, True])
async def test_hanging_shutdown_is_left_after_5_s(tmp_path: Path, *, stubborn: bool) -> None:
    install(tmp_path, "plugin_odd", hanging("shutdown", stubborn=stubborn))
    async with ScriptedUpstream() as upstream, running(tmp_path, upstream) as program:
        assert (await ask(program, "/v1/models", "one")).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended(patience=30) == 0
    assert len(program.output.all) == 1
    assert "plugin 'plugin_odd' failed in shutdown: no result within 5 s" in "\n".join(
        program.errors.all
    )


@pytest.mark.long
@pytest.mark.timeout(80)
@pytest.mark.gen_test(timeout=70)
async def test_blocking_shutdown_ends_with_status_1(tmp_path: Path) -> None:
    source = "@hookimpl\ndef shutdown():\n    threading.Event().wait()\n"
    install(tmp_path, "plugin_odd", IMPORTS + source)
    async with (
        ScriptedUpstream() as upstream,
        running(tmp_path, upstream, DRAIN_TIMEOUT="0") as program,
    ):
        assert (await ask(program, "/v1/models", "one")).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended(patience=50) == 1
    assert len(program.output.all) == 1


@pytest.mark.long
@pytest.mark.timeout(60)
@pytest.mark.gen_test(timeout=50)
@pytest.mark.parametrize(
    "begin",
    [
        "threading.Thread(target=threading.Event().wait).start()",
        "import concurrent.futures as f; f.ThreadPoolExecutor().submit(threading.Event().wait)",
        "asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)",
    ],
    ids=["thread", "pool", "executor"],
)
async def test_endless_thread_does_not_delay_the_end(tmp_path: Path, begin: str) -> None:
    install(tmp_path, "plugin_odd", IMPORTS + f"@hookimpl\nasync def startup():\n    {begin}\n")
    async with ScriptedUpstream() as upstream, running(tmp_path, upstream) as program:
        assert (await ask(program, "/v1/models", "one")).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert len(program.output.all) == 1
