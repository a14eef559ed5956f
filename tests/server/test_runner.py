"""The running program, in a process of its own: its start, its signals, its end, its demo."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Protocol

import pytest

from tornadoproxy.testing import (
    RawConnection,
    RawResponse,
    Response,
    ScriptedUpstream,
    UpstreamExchange,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornado.ioloop import IOLoop

TOKEN = "canary-token-9f2c7b5e41"
OTHER_TOKEN = "canary-token-03b8d6aa27"
KEY = "sk-canary-key-51d0a7"
OTHER_KEY = "sk-canary-key-e4c91f"
MODELS = request_bytes("GET", "/v1/models", token=TOKEN)


class Program:
    """A running ``python -m tornadoproxy``, and what it has written to standard error."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._more:
                self.lines.append(line.decode().rstrip("\n"))
                self._more.notify_all()

    async def line(self, pattern: str) -> re.Match[str]:
        """The first line that `pattern` is found in, waited for."""

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        async with self._more:
            match = await self._more.wait_for(found)
        assert match
        return match

    async def port(self) -> int:
        """The port, once it listens."""
        port = int((await self.line(r"^  address +https?://\S+:(\d+)$"))[1])
        await self.line(r"^curl ")
        return port

    async def ended(self) -> int:
        """The exit status, waited for; everything that was written has been read."""
        status = await self.process.wait()
        await self._reading
        return status

    async def ask(self, request: bytes = MODELS) -> RawResponse:
        """Its answer to one request on a connection of its own."""
        connection = await RawConnection.open(await self.port())
        await connection.send(request)
        response = await connection.response()
        await connection.close()
        return response

    @property
    def text(self) -> str:
        """All that it has written to standard error."""
        return "\n".join(self.lines)


class Start(Protocol):
    async def __call__(self, *arguments: str, **variables: str) -> Program:
        """Start one in the test's directory, with these arguments and this environment."""


@pytest.fixture
def start(io_loop: IOLoop, tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    async def start(*arguments: str, **variables: str) -> Program:
        coverage = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tornadoproxy",
            *arguments,
            cwd=tmp_path,
            env={"PATH": os.defpath, **coverage, "PORT": "0", **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        programs.append(Program(process))
        return programs[-1]

    async def stop() -> None:
        for program in programs:
            # twice, so that it does not wait for what the test has left open
            for number in (signal.SIGTERM, signal.SIGINT):
                with contextlib.suppress(ProcessLookupError):
                    program.process.send_signal(number)
            try:
                async with asyncio.timeout(10):
                    await program.ended()
            except TimeoutError:
                program.process.kill()
                await program.ended()
                raise

    yield start
    io_loop.run_sync(stop)


def in_two_halves(release: asyncio.Event) -> Response:
    """An answer whose second half waits for `release`."""

    async def response(exchange: UpstreamExchange) -> None:
        await exchange.head(200, [("Content-Length", "10")])
        await exchange.send(b"first")
        released = asyncio.create_task(release.wait())
        gone = asyncio.create_task(exchange.disconnected())
        await asyncio.wait((released, gone), return_when=asyncio.FIRST_COMPLETED)
        if released.done():
            await exchange.send(b"later")
        released.cancel()
        gone.cancel()

    return response


def install(directory: Path, name: str, source: str) -> str:
    """Install a package with one plugin; returns the PYTHONPATH that finds it."""
    info = directory / "site" / f"{name}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    (info / "entry_points.txt").write_text(f"[tornadoproxy]\n{name} = {name}\n")
    (directory / "site" / f"{name}.py").write_text(source)
    return str(directory / "site")


@pytest.fixture
def serve(start: Start, upstream: ScriptedUpstream) -> Start:
    """Starts the program in front of `upstream`, with a key and a token."""

    async def serve(*arguments: str, **variables: str) -> Program:
        own = {"UPSTREAM_BASE_URL": upstream.url, "UPSTREAM_API_KEY": KEY, "AUTH_TOKEN": TOKEN}
        return await start(*arguments, **{**own, **variables})

    return serve


async def test_serves_and_says_how_to_use_it(serve: Start, upstream: ScriptedUpstream) -> None:
    program = await serve()
    port = await program.port()
    assert (await program.ask()).status == 200
    assert upstream.requests[0].all("x-api-key") == [KEY]
    assert program.lines[0].startswith("tornadoproxy ")
    for line in (
        rf"  upstream +{re.escape(upstream.url)}, key from UPSTREAM_API_KEY",
        r"  plugins +token, access_log\b.* \(in the order asked\)",
        r"  token +whoever has AUTH_TOKEN",
        rf"export ANTHROPIC_BASE_URL=http://127\.0\.0\.1:{port}",
        r'export ANTHROPIC_AUTH_TOKEN="\$AUTH_TOKEN"',
        rf'curl http://127\.0\.0\.1:{port}/v1/models -H "x-api-key: \$AUTH_TOKEN"',
    ):
        assert [each for each in program.lines if re.fullmatch(line, each)], line
    program.process.terminate()
    assert await program.ended() == 0
    assert TOKEN not in program.text
    assert KEY not in program.text
    assert "Traceback" not in program.text


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    ("file", "content", "variables"),
    [
        (None, "", {"AUTH_TOKEN": TOKEN}),
        (None, "", {"AUTH_TOKEN": f"{TOKEN} {OTHER_TOKEN}"}),
        (".env", f"AUTH_TOKEN={TOKEN}\n", {}),
        (".env", f"\n# ours\nexport AUTH_TOKEN = '{TOKEN} {OTHER_TOKEN}' # two\n", {}),
        ("a file", f"\n{TOKEN}\n{OTHER_TOKEN}\n", {"AUTH_TOKEN_FILE": "a file"}),
    ],
)
async def test_printed_lines_work_when_pasted(
    start: Start,
    upstream: ScriptedUpstream,
    tmp_path: Path,
    file: str | None,
    content: str,
    variables: dict[str, str],
) -> None:
    if file is not None:
        (tmp_path / file).touch(mode=0o600)
        (tmp_path / file).write_text(content)
    program = await start(UPSTREAM_BASE_URL=upstream.url, UPSTREAM_API_KEY=KEY, **variables)
    await program.port()
    shown = program.lines[program.lines.index("to paste first:") :]
    lines = [line for line in shown if not line.startswith("to paste")]
    code = "\n".join(
        f"{line}; print(client.models.list().data[0].id)" for line in lines if "client = " in line
    )
    in_shell = [line for line in lines if "client = " not in line]
    script = "\n".join([*in_shell, f"{sys.executable} -c {shlex.quote(code)}"])
    # another terminal, elsewhere
    pasted = await asyncio.to_thread(
        subprocess.run, ["sh", "-ec", script], cwd="/", env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert pasted.returncode == 0, pasted.stderr
    assert pasted.stdout.count("claude-") > 3
    assert TOKEN not in program.text


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_runs_in_either_event_loop(serve: Start, tmp_path: Path, loop: str) -> None:
    if loop == "asyncio":
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "uvloop.py").write_text("raise ImportError")
    elif importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    program = await serve(PYTHONPATH=str(tmp_path / "site"))
    assert (await program.line("^  event loop +(.*)$"))[1] == loop
    assert (await program.ask()).status == 200
    program.process.terminate()
    assert await program.ended() == 0


async def test_logs_no_credential_that_it_cannot_read(serve: Start) -> None:
    program = await serve(LOG_LEVEL="debug")
    for header in (f"x-api-key: {TOKEN}\x01", f"{TOKEN}", f"Host: {TOKEN}\x01", f" {TOKEN}"):
        client = await RawConnection.open(await program.port())
        await client.send(f"GET /v1/models?key={TOKEN} HTTP/1.1\r\n{header}\r\n\r\n".encode())
        await client.disconnected()
        await client.close()
    program.process.terminate()
    assert await program.ended() == 0
    assert "stopping" in program.text
    assert TOKEN not in program.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_requests_in_flight_finish(
    serve: Start, upstream: ScriptedUpstream, number: signal.Signals
) -> None:
    release = asyncio.Event()
    upstream.script(in_two_halves(release))
    program = await serve()
    client = await RawConnection.open(await program.port())
    await client.send(MODELS)
    await client.head()
    program.process.send_signal(number)
    await program.line("stopping: no new connections")
    release.set()
    assert await client.read_to_end() == b"firstlater"
    assert await program.ended() == 0
    await client.close()


async def test_a_second_signal_ends_it_now(serve: Start, upstream: ScriptedUpstream) -> None:
    upstream.script(in_two_halves(asyncio.Event()))
    program = await serve(DRAIN_TIMEOUT="1000")
    client = await RawConnection.open(await program.port())
    await client.send(MODELS)
    await client.head()
    program.process.terminate()
    await program.line("stopping: no new connections")
    program.process.send_signal(signal.SIGINT)
    assert await program.ended() == 1
    assert "stopping now: aborting the requests in flight" in program.text
    assert "Traceback" not in program.text
    with contextlib.suppress(ConnectionResetError):
        assert await client.read_to_end() == b"first"
    await upstream.requests[0].disconnected()
    await client.close()


async def test_a_plugin_that_never_starts_can_be_interrupted(serve: Start, tmp_path: Path) -> None:
    path = install(
        tmp_path,
        "sleepy",
        """
import asyncio, sys
from tornadoproxy import hookimpl

@hookimpl
async def startup():
    print("starting", file=sys.stderr, flush=True)
    await asyncio.Event().wait()
""",
    )
    program = await serve(PYTHONPATH=path)
    await program.line("^starting$")
    program.process.terminate()
    program.process.send_signal(signal.SIGINT)
    assert await program.ended() == 1


async def test_a_plugin_that_will_not_be_cancelled_does_not_hold_the_end(
    serve: Start, tmp_path: Path
) -> None:
    path = install(
        tmp_path,
        "stubborn",
        """
import asyncio
from tornadoproxy import hookimpl

tasks = []

async def stay():
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

@hookimpl
async def startup():
    tasks.append(asyncio.create_task(stay()))
""",
    )
    program = await serve(PYTHONPATH=path)
    await program.port()
    program.process.terminate()
    assert await program.ended() == 0


async def test_a_port_in_use_is_one_line(serve: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        program = await serve(PORT=str(taken.getsockname()[1]))
        assert await program.ended() == 2
    (line,) = program.lines
    assert line.startswith("tornadoproxy: ")
    assert "PORT" in line


async def test_wrong_settings_end_it_before_it_listens(serve: Start) -> None:
    program = await serve("--drain-timeout", "-5", AUTH_TOKEN="")
    assert await program.ended() == 2
    assert program.lines == [
        "tornadoproxy: DRAIN_TIMEOUT must be a number of seconds from 0 to 31536000, without a "
        "unit, not '-5' (on the command line)",
        "tornadoproxy: AUTH_TOKEN is set but empty: give it a value or unset it",
    ]


async def listening(port: int) -> RawConnection:
    """A connection to `port`, as soon as somebody listens there."""
    while True:
        try:
            return await RawConnection.open(port)
        except ConnectionRefusedError:
            # nothing tells of it from outside
            await asyncio.sleep(0.01)


async def test_a_standard_error_that_takes_nothing_holds_nothing_up(
    serve: Start, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 1024)
    os.set_blocking(writer, True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tornadoproxy"),
        cwd=tmp_path,
        env={
            "PORT": str(port),
            "UPSTREAM_BASE_URL": upstream.url,
            "AUTH_TOKEN": TOKEN,
            "LOG_LEVEL": "debug",
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=writer,
    )
    try:
        client = await listening(port)
        await client.send(MODELS)
        assert (await client.response()).status != 0
        await client.close()
        process.terminate()
        assert await process.wait() == 0
    finally:
        os.close(reader)
        os.close(writer)
        if process.returncode is None:
            process.kill()
            await process.wait()


class Reloaded:
    """A running program whose ``.env`` can be changed."""

    def __init__(self, directory: Path, program: Program) -> None:
        self.directory = directory
        self.program = program

    def write(self, *lines: str) -> None:
        """Write the ``.env`` file anew; the key stays in a file of its own."""
        text = "\n".join(("UPSTREAM_API_KEY_FILE=key", *lines))
        (self.directory / ".env").write_text(text)

    async def reload(self) -> None:
        """Send SIGHUP, and wait until everything has been read again."""
        await self.program.port()
        self.program.process.send_signal(signal.SIGHUP)
        await self.program.line("SIGHUP: reloaded secrets and the settings of plugins")


class TestReload:
    @pytest.fixture
    def reloaded(
        self, io_loop: IOLoop, start: Start, upstream: ScriptedUpstream, tmp_path: Path
    ) -> Reloaded:
        async def make() -> Reloaded:
            reloaded = Reloaded(tmp_path, await start(UPSTREAM_BASE_URL=upstream.url))
            await reloaded.program.port()
            return reloaded

        for name in ("key", ".env"):
            (tmp_path / name).touch(mode=0o600)
        (tmp_path / "key").write_text(KEY)
        (tmp_path / ".env").write_text(
            f"AUTH_TOKEN={TOKEN}\nUPSTREAM_API_KEY_FILE=key\nHOST=0.0.0.0\nLOG_LEVEL=info\n"
        )
        made: Reloaded = io_loop.run_sync(make)
        return made

    async def test_takes_tokens_and_keys_anew(
        self, reloaded: Reloaded, upstream: ScriptedUpstream
    ) -> None:
        program = reloaded.program
        assert (await program.ask()).status == 200
        (reloaded.directory / "key").write_text(OTHER_KEY)
        reloaded.write("HOST=0.0.0.0", f"AUTH_TOKEN={OTHER_TOKEN}")
        await reloaded.reload()
        assert (await program.ask()).status == 401
        other = request_bytes("GET", "/v1/models", token=OTHER_TOKEN)
        assert (await program.ask(other)).status == 200
        assert [request.header("x-api-key") for request in upstream.requests] == [KEY, OTHER_KEY]

    async def test_drops_no_stream(self, reloaded: Reloaded, upstream: ScriptedUpstream) -> None:
        release = asyncio.Event()
        upstream.script(in_two_halves(release))
        client = await RawConnection.open(await reloaded.program.port())
        await client.send(MODELS)
        await client.head()
        reloaded.write("HOST=0.0.0.0", f"AUTH_TOKEN={OTHER_TOKEN}")
        await reloaded.reload()
        release.set()
        body = b""
        while len(body) < 10:
            body += await client.read()
        assert body == b"firstlater"
        await client.close()

    @pytest.mark.parametrize(
        ("lines", "told"),
        [
            (["nonsense"], r"\.env, line 2: has no =: write NAME=value"),
            (["AUTH_TOKEN="], "AUTH_TOKEN is set but empty"),
            ([f"AUTH_TOKN={OTHER_TOKEN}"], "unknown setting AUTH_TOKN: did you mean AUTH_TOKEN"),
            (
                [f"AUTH_TOKEN={OTHER_TOKEN}", "ALLOW_ANONYMOUS=1"],
                "ALLOW_ANONYMOUS contradicts the token",
            ),
            (
                [f"AUTH_TOKEN={OTHER_TOKEN}", f"UPSTREAM_API_KEY={KEY}"],
                "UPSTREAM_API_KEY and UPSTREAM_API_KEY_FILE are both set",
            ),
            # it still listens on every address, whatever the file says now
            (["HOST=127.0.0.1"], "HOST is 0.0.0.0 and no AUTH_TOKEN is set"),
        ],
    )
    async def test_of_wrong_settings_changes_nothing(
        self, reloaded: Reloaded, lines: list[str], told: str
    ) -> None:
        program = reloaded.program
        reloaded.write(*lines)
        program.process.send_signal(signal.SIGHUP)
        await program.line(f"ERROR.*SIGHUP: the settings stay as they were: .*{told}")
        assert (await program.ask()).status == 200
        other = request_bytes("GET", "/v1/models", token=OTHER_TOKEN)
        assert (await program.ask(other)).status == 401
        assert OTHER_TOKEN not in program.text
        assert KEY not in program.text

    async def test_names_what_waits_for_the_next_start(self, reloaded: Reloaded) -> None:
        program = reloaded.program
        reloaded.write(
            "HOST=0.0.0.0", f"AUTH_TOKEN={OTHER_TOKEN}", "MAX_BODY_SIZE=1kB", "ACCESS_LOG=off"
        )
        await reloaded.reload()
        (warning,) = [line for line in program.lines if "WARNING" in line]
        assert warning.endswith("SIGHUP: MAX_BODY_SIZE has changed; restart to apply it")
        large = request_bytes("POST", "/v1/messages", body=b" " * 2048, token=OTHER_TOKEN)
        assert (await program.ask(large)).status != 413

    async def test_changes_the_log_level(self, start: Start, tmp_path: Path) -> None:
        file = tmp_path / ".env"
        file.write_text("LOG_LEVEL=error\n")
        program = await start(UPSTREAM_API_KEY=KEY)
        await program.port()
        file.write_text("LOG_LEVEL=info\n")
        program.process.send_signal(signal.SIGHUP)
        await program.line(" INFO .*SIGHUP")


class TestDemo:
    async def test_streams_an_answer_by_the_line_it_shows(self, start: Start) -> None:
        program = await start("demo", UPSTREAM_API_KEY=KEY)
        port = await program.port()
        command = shlex.split((await program.line(r"^curl -N .*$"))[0])
        assert program.lines[0] == (
            "This is a demo: the answers come from a script, not from Claude."
        )
        assert command[2] == f"http://127.0.0.1:{port}/v1/messages"
        headers = dict(each.split(": ", 1) for each in (command[4], command[6]))
        body = command[8].encode()
        response = await program.ask(request_bytes("POST", "/v1/messages", headers, body))
        assert response.status == 200
        assert (response.header("content-type") or "").startswith("text/event-stream")
        events = re.findall(rb"^event: (\w+)$", response.body, re.MULTILINE)
        assert events[0] == b"message_start"
        assert events[-1] == b"message_stop"
        assert events.count(b"content_block_delta") > 1
        assert (await program.ask(request_bytes("POST", "/v1/messages", body=body))).status == 401
        program.process.terminate()
        assert await program.ended() == 0
        assert KEY not in program.text

    async def test_makes_up_a_token_each_time(self, start: Start) -> None:
        tokens = set()
        for _ in range(2):
            program = await start("demo")
            tokens.add((await program.line(r'ANTHROPIC_AUTH_TOKEN="([\w-]{43})"'))[1])
        assert len(tokens) == 2

    async def test_demo_beside_an_env_file_does_not_read_it(
        self, start: Start, tmp_path: Path
    ) -> None:
        (tmp_path / ".env").write_text(f"AUTH_TOKEN={TOKEN}\nLOG_LEVEL=loud\n")
        program = await start("demo")
        await program.line(r'ANTHROPIC_AUTH_TOKEN="([\w-]{43})"')
        assert (await program.ask(request_bytes("GET", "/v1/models", token=TOKEN))).status == 401

    @pytest.mark.parametrize("by", ["variable", "file"])
    async def test_takes_a_token_that_is_set(self, start: Start, tmp_path: Path, by: str) -> None:
        (tmp_path / "token").write_text(TOKEN)
        variables = {"AUTH_TOKEN": TOKEN} if by == "variable" else {"AUTH_TOKEN_FILE": "token"}
        program = await start("demo", **variables)
        await program.line(r'ANTHROPIC_AUTH_TOKEN="\$AUTH_TOKEN"')
        assert (await program.ask()).status == 200
        assert TOKEN not in program.text

    async def test_makes_up_no_token_for_another_authenticator(
        self, start: Start, tmp_path: Path
    ) -> None:
        path = install(
            tmp_path,
            "everybody",
            """
from tornadoproxy import Identity, hookimpl

@hookimpl
def authenticate(request):
    return Identity("everybody")
""",
        )
        program = await start("demo", "--disabled-plugins", "token", PYTHONPATH=path)
        await program.line("export AUTH_TOKEN=your-token")
        assert (await program.ask()).status == 200

    async def test_keeps_its_upstream_and_its_token_on_reload(self, start: Start) -> None:
        program = await start("demo")
        await program.port()
        token = (await program.line(r'ANTHROPIC_AUTH_TOKEN="([\w-]{43})"'))[1]
        program.process.send_signal(signal.SIGHUP)
        await program.line("SIGHUP: reloaded secrets and the settings of plugins")
        assert (await program.ask(request_bytes("GET", "/v1/models", token=token))).status == 200
        assert "WARNING" not in program.text

    async def test_reports_wrong_settings(self, start: Start) -> None:
        program = await start("demo", "--prt", "1")
        assert await program.ended() == 2
        assert program.lines == ["tornadoproxy: unknown flag --prt: did you mean --port?"]
