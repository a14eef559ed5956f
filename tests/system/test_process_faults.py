"""Faults around the real program: plugins that fail or hang, a taken port, useless streams."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import pytest
from program import Launch, Program, connect_when_listening, install

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    RawResponse,
    request_bytes,
)

MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)

CANARY = "sk-canary-key-51d0a7"

IMPORTS = """
import asyncio, pathlib, sys, threading
from tornadoproxy import hookimpl

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

async def fail_later(way):
    await asyncio.sleep(0)
    return fail(way)
"""

# what sys.exit() is called for must not end a proxy, least of all with the status 0
RAISING = (
    *("Canary", "SystemExit", "SystemExit with a text", "KeyboardInterrupt", "CancelledError"),
    *("GeneratorExit", "StopIteration", "RecursionError"),
)
NONSENSE = ("coroutine", "number")


def name_of(way: str) -> str:
    return f"plugin_{way.lower().replace(' ', '_')}"


def install_each(directory: Path, ways: tuple[str, ...], source: str) -> None:
    """Install a plugin for each way to fail; ``WAY`` in its source is the way."""
    for way in ways:
        install(directory, name_of(way), IMPORTS + source.replace("WAY", repr(way)))


async def ask(program: Program, path: str, session: str) -> RawResponse:
    headers = {"X-Claude-Code-Session-Id": session}
    return await program.ask(request_bytes("GET", path, headers, token=TEST_TOKEN))


@pytest.mark.parametrize("hook", ["declare_settings()", "configure(settings)"])
async def test_hook_failing_before_the_start_is_one_line_each(
    tmp_path: Path, launch: Launch, hook: str
) -> None:
    ways: tuple[str, ...] = (*RAISING, *NONSENSE)
    if hook == "declare_settings()":  # where a plugin's interruption may be the user's
        ways = tuple(way for way in ways if way != "KeyboardInterrupt")
    install_each(tmp_path, ways, f"@hookimpl\ndef {hook}:\n    return fail(WAY)\n")
    async with launch() as program:
        assert await program.ended() == 2
    assert program.output.all == []
    named = [re.findall(r"^tornadoproxy: plugin '(\w+)'", line) for line in program.errors.all]
    assert named == [[name_of(way)] for way in sorted(ways, key=name_of)]
    if hook == "configure(settings)":  # the first that knows a secret
        assert CANARY not in program.said()


@pytest.mark.parametrize(
    "startup",
    [
        "def startup():\n    fail('SystemExit')",
        "async def startup():\n    await fail_later('KeyboardInterrupt')",
    ],
    ids=["SystemExit", "KeyboardInterrupt"],
)
async def test_failing_startup_is_one_line_and_status_2(
    tmp_path: Path, launch: Launch, startup: str
) -> None:
    install(tmp_path, "plugin_odd", f"{IMPORTS}\n@hookimpl\n{startup}\n")
    async with launch() as program:
        assert await program.ended() == 2
    (line,) = program.errors.all
    assert "plugin 'plugin_odd' failed in startup: " in line


async def test_configure_failing_on_sighup_keeps_the_settings(
    tmp_path: Path, launch: Launch
) -> None:
    way_file, tokens = tmp_path / "way", tmp_path / "tokens"
    way_file.write_text("")
    tokens.write_text(TEST_TOKEN)
    read_way = "pathlib.Path('way').read_text()"
    configure = f"@hookimpl\ndef configure(settings):\n    return fail({read_way})\n"
    install(tmp_path, "plugin_odd", IMPORTS + configure)
    async with launch(AUTH_TOKEN=None, AUTH_TOKEN_FILE=str(tokens)) as program:
        await program.port()
        tokens.write_text("another-token-that-must-not-be-taken")
        for count, way in enumerate((*RAISING, *NONSENSE), start=1):
            way_file.write_text(way)
            program.send_signal(signal.SIGHUP)
            kept = "SIGHUP: the settings stay as they were: plugin 'plugin_odd'"
            await program.errors.wait_for(kept, count)
        assert (await ask(program, "/v1/models", "before")).status == 200
        way_file.write_text("")
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded secrets and the settings of plugins")
        assert (await ask(program, "/v1/models", "after")).status == 401
        assert CANARY not in program.said()
        assert "Traceback" not in program.said()


WHILE_SERVING = """
@hookimpl
def authenticate(request):
    hook, _, way = request.headers.get("X-Claude-Code-Session-Id", "").partition(" ")
    if hook == "authenticate":
        return fail(way) if way != "coroutine" else None
    if hook == "later":
        return fail_later(way)

@hookimpl
def request_finished(record):
    hook, _, way = record.session_id.partition(" ")
    return fail(way) if hook == "request_finished" else None
"""


async def test_hooks_failing_while_it_serves_end_nothing(tmp_path: Path, launch: Launch) -> None:
    """A failed authenticator is a 503; a failed observer changes no response and no record."""
    # the observers are called before and after the access log, in the order of their names
    for name in ("a_failing", "z_failing"):
        install(tmp_path, name, IMPORTS + WHILE_SERVING)
    sessions = [
        f"{hook} {way}"
        for hook in ("authenticate", "later", "request_finished")
        for way in (*RAISING, *NONSENSE)
        if (hook, way) != ("authenticate", "coroutine")
    ]
    async with launch() as program:
        for session in sessions:
            for path in ("/v1/models", "/openai/v1/models"):
                response = await ask(program, path, session)
                if session.startswith("request_finished"):
                    assert response.status == 200
                else:
                    assert response.status == 503, session
                    assert response.header("retry-after")
                    assert json.loads(response.body)["error"]["message"]
        assert await program.stop() == 0
    records = [json.loads(line)["session_id"] for line in program.output.all]
    assert records == [session for session in sessions for _ in range(2)]
    refused = 2 * sum(not session.startswith("request_finished") for session in sessions)
    told = [line for line in program.errors.all if "failed in authenticate" in line]
    # at 1, 2, 4, 8 …: what fails for every request must not fill the disk
    assert len(told) == refused.bit_length()
    for name in ("a_failing", "z_failing"):
        assert f"plugin '{name}' failed in request_finished (1 so far)" in program.said()
    assert CANARY not in program.said()


async def test_failing_shutdown_stops_no_other_shutdown(tmp_path: Path, launch: Launch) -> None:
    stop = "@hookimpl\nasync def shutdown():\n    return await fail_later(WAY)\n"
    install_each(tmp_path, RAISING, stop)
    # the last of all, since the order is the reverse of the start's
    last = "@hookimpl\ndef shutdown():\n    pathlib.Path('end').touch()\n"
    install(tmp_path, "a_good_one", IMPORTS + last)
    async with launch() as program:
        await program.port()
        assert await program.stop() == 0
    assert (tmp_path / "end").exists()
    told = re.findall(r"plugin '(\w+)' failed in shutdown", program.said())
    assert sorted(told) == sorted(map(name_of, RAISING))


@pytest.mark.long
@pytest.mark.timeout(80)
@pytest.mark.gen_test(timeout=70)
@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("def shutdown():\n    threading.Event().wait()", 1),
        ("async def startup():\n    threading.Thread(target=threading.Event().wait).start()", 0),
        (
            "async def startup():\n    loop = asyncio.get_running_loop()\n"
            "    loop.run_in_executor(None, threading.Event().wait)",
            0,
        ),
    ],
    ids=["a shutdown that blocks", "a thread", "an executor's thread"],
)
async def test_endless_thread_of_a_plugin_keeps_no_program(
    tmp_path: Path, launch: Launch, source: str, status: int
) -> None:
    install(tmp_path, "plugin_odd", f"{IMPORTS}\n@hookimpl\n{source}\n")
    async with launch(DRAIN_TIMEOUT="0") as program:
        assert (await ask(program, "/v1/models", "one")).status == 200
        program.send_signal(signal.SIGTERM)
        assert await program.ended(patience=50) == status
    assert len(program.output.all) == 1


async def test_port_in_use_shuts_plugins_down(tmp_path: Path, launch: Launch) -> None:
    shutdown = "@hookimpl\ndef shutdown():\n    print('shut down', file=sys.stderr, flush=True)\n"
    install(tmp_path, "noting", IMPORTS + shutdown)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with launch(PORT=str(port)) as program:
            assert await program.ended() == 2
    told = f"cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use; "
    told += "choose another PORT or HOST"
    assert program.errors.all == ["shut down", f"tornadoproxy: {told}"]


async def test_secrets_from_files_are_not_in_proc(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "key").write_text(TEST_UPSTREAM_KEY)
    (tmp_path / ".env").write_text(f"AUTH_TOKEN={TEST_TOKEN}\nUPSTREAM_API_KEY_FILE=key\n")
    async with launch("--drain-timeout", "1", AUTH_TOKEN=None, UPSTREAM_API_KEY=None) as program:
        assert (await program.ask(MODELS)).status == 200
        process = Path(f"/proc/{program.process.pid}")
        shown = b"".join(path.read_bytes() for path in process.glob("task/*/comm"))
        shown += (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    assert b"--drain-timeout" in shown
    for secret in (TEST_TOKEN, TEST_UPSTREAM_KEY):
        assert secret.encode() not in shown


# -- logs that cannot be written, because they are full or closed


async def check_it_serves(port: int) -> None:
    """Twenty requests of one connection are answered; each writes a line to both logs."""
    client = await connect_when_listening(port)
    for _ in range(20):
        assert (await client.ask(MODELS)).status == 200
        # an unreadable request is a line in the log
        spoiler = await RawConnection.open(port)
        assert (await spoiler.ask(b"GET /v1/models HTTP/1.1\r\nx y: 1\r\n\r\n")).status == 400
        await spoiler.close()
    await client.close()


def closing(streams: str) -> list[str]:
    """The command that starts a program with these redirections of its standard streams."""
    return ["sh", "-c", f'exec "$@" {streams}', "sh"]


@pytest.mark.parametrize(
    "streams",
    [
        *(">/dev/full 2>&1", "<&- >&- 2>&-"),
        *(
            pytest.param(each, marks=pytest.mark.long)
            for each in ("<&-", ">&-", "2>&-", ">&- 2>&-")
        ),
    ],
)
async def test_standard_streams_of_no_use_change_no_response(
    tmp_path: Path, launch: Launch, free_port: int, streams: str
) -> None:
    # a proxy that cannot log cannot tell its port
    variables = {"PORT": str(free_port), "LOG_LEVEL": "debug"}
    async with launch(wrapper=closing(streams), **variables) as program:
        await check_it_serves(free_port)
        # the access log is opened anew, where its descriptor may be another's by now
        (tmp_path / ".env").write_text("LOG_LEVEL=info\nACCESS_LOG_FORMAT=text\n")
        program.send_signal(signal.SIGHUP)
        await check_it_serves(free_port)
        assert await program.stop() == 0
    # neither log is written where the other belongs
    records = [json.loads(line) for line in program.output.all]
    assert len(records) == (0 if re.search(r"(^| )>", streams) else 40)
    assert [line for line in program.errors.all if line.startswith("{")] == []
    assert ("stopping" in program.said()) is ("2>" not in streams)


async def test_unwritable_start_error_keeps_status_2(launch: Launch) -> None:
    async with launch(wrapper=closing("2>/dev/full"), PORT="none") as program:
        assert await program.ended() == 2
    assert program.output.all == []
