"""The command ``demo``, in a process of its own."""

from __future__ import annotations

import re
import shlex
import signal
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from program import Program, install, running

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, ScriptedUpstream, request_bytes

EVERYBODY = """
from tornadoproxy import Identity, hookimpl

@hookimpl
def authenticate(request):
    return Identity("everybody")
"""


def demo(
    directory: Path,
    upstream: ScriptedUpstream,
    *arguments: str,
    token_file: str | None = None,
    key: str | None = None,
) -> AbstractAsyncContextManager[Program]:
    """Run the demo with these settings, and `upstream`'s URL left out."""
    return running(
        directory,
        upstream,
        *("demo", *arguments),
        AUTH_TOKEN=None,
        AUTH_TOKEN_FILE=token_file,
        UPSTREAM_API_KEY=key,
        UPSTREAM_BASE_URL=None,
    )


def models(token: str) -> bytes:
    return request_bytes("GET", "/v1/models", token=token)


async def test_demo_streams_by_its_printed_line(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """It makes up a token, which stays on reload, and reads no ``.env`` file beside it."""
    (tmp_path / ".env").write_text(f"AUTH_TOKEN={TEST_TOKEN}\nLOG_LEVEL=loud\n")
    async with demo(tmp_path, upstream, key=TEST_UPSTREAM_KEY) as program:
        port = await program.port()
        token = (await program.errors.wait_for(r'ANTHROPIC_AUTH_TOKEN="([\w-]{43})"'))[1]
        command = shlex.split((await program.errors.wait_for(r"^curl -N .*$"))[0])
        assert program.errors.all[0].startswith("This is a demo")
        assert command[2] == f"http://127.0.0.1:{port}/v1/messages"
        headers = dict(each.split(": ", 1) for each in (command[4], command[6]))
        body = command[8].encode()
        response = await program.ask(request_bytes("POST", "/v1/messages", headers, body))
        assert response.status == 200
        assert (response.header("content-type") or "").startswith("text/event-stream")
        events = re.findall(rb"^event: (\w+)$", response.body, re.MULTILINE)
        assert (events[0], events[-1]) == (b"message_start", b"message_stop")
        assert events.count(b"content_block_delta") > 1
        program.send_signal(signal.SIGHUP)
        await program.errors.wait_for("SIGHUP: reloaded")
        assert (await program.ask(models(token))).status == 200
        assert (await program.ask(models(TEST_TOKEN))).status == 401
        program.send_signal(signal.SIGTERM)
        assert await program.ended() == 0
    assert not [line for line in program.errors.all if "WARNING" in line]
    assert TEST_UPSTREAM_KEY not in "\n".join(program.errors.all)
    assert not upstream.requests


async def test_demo_uses_a_token_that_is_set(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    (tmp_path / "token").write_text(TEST_TOKEN)
    async with demo(tmp_path, upstream, token_file="token") as program:
        await program.errors.wait_for(r'ANTHROPIC_AUTH_TOKEN="\$AUTH_TOKEN"')
        assert (await program.ask(models(TEST_TOKEN))).status == 200
    assert TEST_TOKEN not in "\n".join(program.errors.all)


async def test_demo_makes_up_no_token_for_another_authenticator(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    install(tmp_path, "everybody", EVERYBODY)
    async with demo(tmp_path, upstream, "--disabled-plugins", "token") as program:
        await program.errors.wait_for("export AUTH_TOKEN=your-token")
        assert (await program.ask(models(TEST_TOKEN))).status == 200
