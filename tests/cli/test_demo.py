"""The command ``demo``, in a process of its own."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

from program import Launch, install

from tornadoproxy.testing import TEST_TOKEN, TEST_UPSTREAM_KEY, ScriptedUpstream, request_bytes

EVERYBODY = """
from tornadoproxy import Identity, hookimpl

@hookimpl
def authenticate(request):
    return Identity("everybody")
"""


NOT_SET: dict[str, str | None] = dict.fromkeys(
    ("AUTH_TOKEN", "UPSTREAM_API_KEY", "UPSTREAM_BASE_URL")
)


def models(token: str) -> bytes:
    return request_bytes("GET", "/v1/models", token=token)


async def test_demo_streams_by_its_printed_line(
    tmp_path: Path, upstream: ScriptedUpstream, launch: Launch
) -> None:
    """It makes up a token, which stays on reload, and reads no ``.env`` file beside it."""
    (tmp_path / ".env").write_text(f"AUTH_TOKEN={TEST_TOKEN}\nLOG_LEVEL=loud\n")
    async with launch("demo", **{**NOT_SET, "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY}) as program:
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
        assert await program.stop() == 0
    assert "WARNING" not in program.said()
    assert TEST_UPSTREAM_KEY not in program.said()
    assert not upstream.requests


async def test_demo_uses_a_token_that_is_set(tmp_path: Path, launch: Launch) -> None:
    (tmp_path / "token").write_text(TEST_TOKEN)
    async with launch("demo", AUTH_TOKEN_FILE="token", **NOT_SET) as program:
        await program.errors.wait_for(r'ANTHROPIC_AUTH_TOKEN="\$AUTH_TOKEN"')
        assert (await program.ask(models(TEST_TOKEN))).status == 200
    assert TEST_TOKEN not in program.said()


async def test_demo_makes_up_no_token_for_another_authenticator(
    tmp_path: Path, launch: Launch
) -> None:
    install(tmp_path, "everybody", EVERYBODY)
    async with launch("demo", "--disabled-plugins", "token", **NOT_SET) as program:
        await program.errors.wait_for("export AUTH_TOKEN=your-token")
        assert (await program.ask(models(TEST_TOKEN))).status == 200
