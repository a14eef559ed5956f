"""The running program, in a process of its own: its start, its signals and its exit status."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from held_stream import EVENTS, REQUEST, Stream, begin_stream, rest_of_stream
from program import Launch, connect_when_listening, install

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    ScriptedUpstream,
    clean_environment,
    request_bytes,
    sse_response,
)

OTHER_TOKEN = "another-token-that-is-long-enough"
OTHER_KEY = "another-key"
MODELS = request_bytes("GET", "/v1/models", token=TEST_TOKEN)
READY = request_bytes("GET", "/ready")


# -- start


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_start_prints_its_facts_and_serves(
    tmp_path: Path, upstream: ScriptedUpstream, launch: Launch, loop: str
) -> None:
    if loop == "asyncio":
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "uvloop.py").write_text("raise ImportError")
    elif importlib.util.find_spec("uvloop") is None:
        pytest.skip("uvloop is not installed")
    async with launch() as program:
        await program.port()
        assert (await program.ask(MODELS)).status == 200
    assert program.errors.all[0].startswith("tornadoproxy ")
    for line in (
        rf"  upstream +{re.escape(upstream.url)}, key from UPSTREAM_API_KEY",
        r"  plugins +token, access_log\b.*",
        r"  token +.*AUTH_TOKEN",
        rf"  event loop +{loop}",
    ):
        assert [each for each in program.errors.all if re.fullmatch(line, each)], line
    for absent in (TEST_TOKEN, TEST_UPSTREAM_KEY, "Traceback"):
        assert absent not in program.said()


TWO_TOKENS = f"{TEST_TOKEN} {OTHER_TOKEN}"


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    ("file", "content", "variables"),
    [
        (".env", "LOG_LEVEL=info\n", {"AUTH_TOKEN": TWO_TOKENS}),
        (".env", f"\n# ours\nexport AUTH_TOKEN = '{TWO_TOKENS}' # two\n", {"AUTH_TOKEN": None}),
        ("a file", f"\n{TWO_TOKENS}\n", {"AUTH_TOKEN": None, "AUTH_TOKEN_FILE": "a file"}),
    ],
    ids=["variable", ".env", "file"],
)
async def test_printed_lines_work_when_pasted(
    tmp_path: Path,
    launch: Launch,
    file: str,
    content: str,
    variables: dict[str, Any],  # as `running` takes them
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / file).touch(mode=0o600)
    (tmp_path / file).write_text(content)
    async with launch(**variables) as program:
        await program.port()
        printed = program.errors.all
        lines = printed[printed.index("Paste this first:") :]
        shell = [line for line in lines if not re.search("^Paste |client = ", line)]
        shell.append(f"env -0 >{shlex.quote(str(tmp_path / 'environment'))}")
        # another terminal, elsewhere
        command = ["sh", "-ec", "\n".join(shell)]
        pasted = await asyncio.to_thread(
            subprocess.run, command, cwd="/", env={"PATH": os.environ["PATH"]},
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert pasted.returncode == 0, pasted.stderr
        # what is pasted into Python there
        clean_environment(monkeypatch)
        for each in (tmp_path / "environment").read_text().removesuffix("\0").split("\0"):
            monkeypatch.setenv(*each.split("=", 1))
        snippets = [line for line in lines if "client = " in line]
        assert len(snippets) == 2
        for snippet in snippets:
            names: dict[str, Any] = {}
            exec(snippet, names)
            models = await asyncio.to_thread(names["client"].models.list)
            assert models.data[0].id.startswith("claude-")
            names["client"].close()
    assert pasted.stdout.count("claude-") > 2
    assert TEST_TOKEN not in program.said()


async def test_blocked_standard_error_delays_nothing(launch: Launch, free_port: int) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 1024)
    os.set_blocking(writer, True)
    async with launch(stderr=writer, PORT=str(free_port), LOG_LEVEL="debug") as program:
        client = await connect_when_listening(free_port)
        assert (await client.ask(MODELS)).status == 200
        await client.close()
        assert await program.stop() == 0
    os.close(reader)
    os.close(writer)


# -- signals that stop the program


async def test_signal_drains_after_the_delay_and_exits_with_0(
    upstream: ScriptedUpstream, launch: Launch
) -> None:
    stream = Stream()
    upstream.script(stream)
    async with launch(SHUTDOWN_DELAY="0.01") as program:
        idle, streaming = await program.connect(), await program.connect()
        await begin_stream(streaming)
        program.send_signal(signal.SIGINT)
        assert await idle.read() == b""
        stream.may_end.set()
        assert await rest_of_stream(streaming) == b"".join(EVENTS[1:])
        assert await program.ended() == 0
        for client in (idle, streaming):
            await client.close()


async def test_second_signal_aborts_and_exits_with_1(
    upstream: ScriptedUpstream, launch: Launch
) -> None:
    upstream.script(sse_response(EVENTS[:1], end="hang"))
    async with launch(DRAIN_TIMEOUT="600") as program:
        streaming = await program.connect()
        await begin_stream(streaming)
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping: no new connections")
        program.send_signal(signal.SIGINT)
        assert await program.ended() == 1
        assert (await streaming.chunk()).startswith(b"event: error\n")
        await streaming.close()
    assert "stopping now: aborting the requests in flight" in program.said()
    assert "Traceback" not in program.said()


async def test_shutdown_delay_serves_requests_unready(launch: Launch) -> None:
    async with launch(SHUTDOWN_DELAY="600") as program:
        kept = await program.connect()
        assert (await kept.ask(request_bytes("GET", "/health"))).status == 200
        program.send_signal(signal.SIGTERM)
        await program.errors.wait_for("stopping in 600 seconds")
        new = await program.connect()
        for client, request, status in ((new, READY, 503), (kept, MODELS, 200)):
            response = await client.ask(request)
            assert (response.status, response.header("Connection")) == (status, "close")
            await client.close()
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 1


SLEEPY = """
import asyncio, sys
from tornadoproxy import hookimpl
from tornadoproxy.server import runner

runner._LAST_RECORDS = 0.1  # seconds

@hookimpl
async def startup():
    print("starting", file=sys.stderr, flush=True)
    await asyncio.Event().wait()
"""

STUBBORN = """
import asyncio
from tornadoproxy import hookimpl
from tornadoproxy.server import runner

runner._EXIT_TIMEOUT = 0.1  # seconds

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
"""


async def test_plugin_that_never_starts_can_be_interrupted(tmp_path: Path, launch: Launch) -> None:
    install(tmp_path, "sleepy", SLEEPY)
    async with launch() as program:
        await program.errors.wait_for("^starting$")
        program.send_signal(signal.SIGTERM)
        program.send_signal(signal.SIGINT)
        assert await program.ended() == 1


async def test_task_that_resists_cancellation_does_not_delay_exit(
    tmp_path: Path, launch: Launch
) -> None:
    install(tmp_path, "stubborn", STUBBORN)
    async with launch() as program:
        await program.port()
        assert await program.stop() == 0


async def test_sighup_reloads_secrets_and_log_level_and_keeps_streams(
    tmp_path: Path, upstream: ScriptedUpstream, launch: Launch
) -> None:
    file, key = tmp_path / ".env", tmp_path / "key"
    for path in (file, key):
        path.touch(mode=0o600)
    fixed = "UPSTREAM_API_KEY_FILE=key\nHOST=0.0.0.0\n"
    key.write_text(TEST_UPSTREAM_KEY)
    file.write_text(f"{fixed}AUTH_TOKEN={TEST_TOKEN}\nLOG_LEVEL=error\n")
    stream = Stream()
    upstream.script(stream)
    async with launch(AUTH_TOKEN=None, UPSTREAM_API_KEY=None) as program:
        streaming = await program.connect()
        await begin_stream(streaming)
        key.write_text(OTHER_KEY)
        file.write_text(f"{fixed}AUTH_TOKEN={OTHER_TOKEN}\nLOG_LEVEL=info\nMAX_BODY_SIZE=1kB\n")
        program.send_signal(signal.SIGHUP)
        reloaded = " INFO .*SIGHUP: reloaded secrets and the settings of plugins"
        await program.errors.wait_for(reloaded)
        stream.may_end.set()
        assert await rest_of_stream(streaming) == b"".join(EVENTS[1:])
        assert (await streaming.ask(REQUEST)).status == 401
        (warning,) = [line for line in program.errors.all if "WARNING" in line]
        assert warning.endswith("SIGHUP: MAX_BODY_SIZE has changed; restart to apply it")

        # the program still listens on every address, whatever the file says now
        for line, fault in (("nonsense", ".env, line 1: "), ("HOST=127.0.0.1", "HOST is 0.0.0.0")):
            file.write_text(line)
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for(f"SIGHUP: the settings stay as they were: .*{fault}")
        large = request_bytes("POST", "/v1/messages", body=b" " * 2048, token=OTHER_TOKEN)
        assert (await program.ask(large)).status == 400
        keys = [each.header("x-api-key") for each in upstream.requests]
        assert keys == [TEST_UPSTREAM_KEY, OTHER_KEY]
        await streaming.close()
    for secret in (OTHER_TOKEN, TEST_UPSTREAM_KEY, OTHER_KEY):
        assert secret not in program.said()


async def test_sighup_reloads_upstreams_file_or_reports_its_line(
    tmp_path: Path, upstream: ScriptedUpstream, launch: Launch
) -> None:
    entry = f'[[upstream]]\nname = "a"\nbase_url = "{upstream.url}"\napi_key = '
    file = tmp_path / "upstreams.toml"
    file.touch(mode=0o600)
    file.write_text(f'{entry}"{TEST_UPSTREAM_KEY}"\n')
    variables = {"UPSTREAM_BASE_URL": None, "UPSTREAM_API_KEY": None}
    async with launch(UPSTREAMS_FILE=file.name, **variables) as program:
        await program.port()
        for text, line in (
            (f'{entry}"{OTHER_KEY}"\n', "SIGHUP: reloaded secrets"),
            (f'{entry}"x"\nweigth = 2\n', "the settings stay as they were: .*line 5: weigth"),
        ):
            file.write_text(text)
            program.send_signal(signal.SIGHUP)
            await program.errors.wait_for(line)
            assert (await program.ask(MODELS)).status == 200
    assert [each.header("x-api-key") for each in upstream.requests] == [OTHER_KEY] * 2
