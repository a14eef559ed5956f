"""The real Claude Code signs in at the real proxy, works, and signs out.

It runs where ``npm install --prefix tests/system/claude_code`` has been run, as root on Linux:
Claude Code reads the gateway's URL from one file below /etc, which is a copy of /etc for it alone,
in a mount namespace of its own. It reaches loopback only.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from signing_in import SigningIn
from tornado.testing import bind_unused_port
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_budgets.engine import Batch, Subject
from tornadoproxy_budgets.money import NANOS_PER_CENT
from tornadoproxy_budgets.periods import day_of
from tornadoproxy_oidc import sessions

CLAUDE = Path(__file__).parent / "claude_code" / "node_modules" / ".bin" / "claude"

pytestmark = [
    pytest.mark.skipif(not CLAUDE.exists(), reason="skipped: needs Claude Code, installed by npm"),
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("unshare") is None,
        reason="skipped: needs root and unshare, for a mount namespace",
    ),
]

LONG = pytest.mark.gen_test(timeout=55)  # it takes long to start while other tests run

ANSI = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[0-9;?<>]*[A-Za-z]|\x1b[=>()][A-Za-z0-9]?")
UP, DOWN, ENTER = b"\x1b[A", b"\x1b[B", b"\r"


class Desk:
    """A machine with Claude Code, whose administrator has named the gateway."""

    def __init__(self, signing_in: SigningIn, directory: Path) -> None:
        self.signing_in = signing_in
        listener, self.port = bind_unused_port()
        listener.close()
        self.url = f"http://127.0.0.1:{self.port}"
        self.etc, self.home = directory / "etc", directory / "home"
        self.home.mkdir()
        shutil.copytree("/etc", self.etc, symlinks=True, ignore_dangling_symlinks=True)
        managed = self.etc / "claude-code" / "managed-settings.json"
        managed.parent.mkdir(exist_ok=True)
        gateway = {"forceLoginMethod": "gateway", "forceLoginGatewayUrl": self.url}
        managed.write_text(json.dumps(gateway))
        self.terminals: list[Terminal] = []

    async def start(self, **given: Any) -> None:
        await self.signing_in.start(PORT=self.port, OIDC_PUBLIC_URL=self.url, **given)

    def command(self, *arguments: str) -> list[str]:
        inner = 'mount --bind "$0" /etc && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", inner, str(self.etc), str(CLAUDE), *arguments]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "TERM": "xterm-256color",
            "DISABLE_AUTOUPDATER": "1",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
            "CLAUDE_CODE_MAX_RETRIES": "0",
        }

    @property
    def credentials(self) -> Path:
        return self.home / ".claude" / ".credentials.json"

    async def sign_in(self, *, left: float = 3600) -> dict[str, Any]:
        """Sign in, and keep what Claude Code keeps of it.

        :param left: seconds until the bearer ends, as Claude Code knows it.
        """
        tokens = await self.signing_in.sign_in()
        self.credentials.parent.mkdir(exist_ok=True)
        gateway = {
            "url": self.url,
            "jwt": tokens["access_token"],
            "expiresAt": int((time.time() + left) * 1000),
            "tokenEndpoint": f"{self.url}/oauth/token",
            "revocationEndpoint": f"{self.url}/oauth/revoke",
            "idpRefreshToken": tokens["refresh_token"],
            "vouchedAtLogin": False,
        }
        kept = {"gatewayTrust": {"127.0.0.1": "http-loopback"}}
        self.credentials.write_text(json.dumps({**kept, "enterpriseGateway": gateway}))
        return tokens

    async def say_hello(self, model: str = "claude-sonnet-5-5") -> tuple[int, str]:
        """Run one prompt in print mode; return the exit status and what is printed."""
        process = await asyncio.create_subprocess_exec(
            *self.command("-p", "Say hello", "--model", model),
            cwd=self.home,
            env=self.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        return process.returncode or 0, printed.decode()

    def asked(self, path: str) -> list[int | None]:
        """Return the statuses of the requests for a path."""
        return [each.status for each in self.signing_in.scene.records.all if each.route == path]


class Terminal:
    """Claude Code in a terminal."""

    def __init__(self, desk: Desk) -> None:
        desk.terminals.append(self)
        self._text = ""
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.chdir(desk.home)
            command = desk.command()
            os.execvpe(command[0], command, desk.environment())
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 140, 0, 0))
        os.set_blocking(self._file, False)
        asyncio.get_running_loop().add_reader(self._file, self._read)

    def _read(self) -> None:
        try:
            self._text += os.read(self._file, 65_536).decode("utf-8", "replace")
        except OSError:  # it has ended
            asyncio.get_running_loop().remove_reader(self._file)

    async def until(self, words: str) -> str:
        """Wait for words on the screen, whatever blanks are between them; return what came."""
        wanted = "".join(words.split())
        try:
            async with asyncio.timeout(25):
                while wanted not in "".join(ANSI.sub("", self._text).split()):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(
                f"{words!r} is not in {ANSI.sub('', self._text)[-3000:]}"
            ) from None
        text, self._text = ANSI.sub("", self._text), ""
        return text

    async def press(self, *keys: bytes) -> None:
        for key in keys:
            os.write(self._file, key)
            await asyncio.sleep(0.3)  # two keys at once would be a paste

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self._file)


@pytest.fixture
def desk(signing_in: SigningIn, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(signing_in, tmp_path)
    yield desk
    for terminal in desk.terminals:
        terminal.close()


@LONG
async def test_person_signs_in_works_and_signs_out(desk: Desk) -> None:
    await desk.start(OIDC_LOGIN_NOTICE="Prompts are kept for a month.")
    terminal = Terminal(desk)
    await terminal.until("Choose the text style")
    await terminal.press(ENTER)
    await terminal.until("Enter to connect")
    await terminal.press(ENTER)
    await terminal.until("No, go back")
    await terminal.press(UP, ENTER)
    screen = await terminal.until("Waiting for sign-in")
    assert "Promptsarekeptforamonth." in "".join(screen.split())
    found = re.search(r"[A-Z]{4}-[A-Z]{4}", screen)
    assert found, screen
    page = await desk.signing_in.approve({"user_code": found[0]})
    assert page.status == 200
    await terminal.until("Connected to Cloud gateway")
    await terminal.press(ENTER)
    await terminal.until("Security notes")
    await terminal.press(ENTER)
    await terminal.until("No, exit")
    await terminal.press(DOWN, ENTER)
    await terminal.until("· Cloud gateway")
    bearer = json.loads(desk.credentials.read_text())["enterpriseGateway"]["jwt"]
    await terminal.press(b"Say hello", ENTER)
    async with asyncio.timeout(20):
        while 200 not in desk.asked("/v1/messages"):
            await asyncio.sleep(0.05)
    answered = [each for each in desk.signing_in.scene.records.all if each.route == "/v1/messages"]
    assert {each.principal for each in answered} == {"ada"}

    await terminal.press(b"/logout", ENTER)
    async with asyncio.timeout(20):
        while len(desk.asked("/oauth/revoke")) < 2:
            await asyncio.sleep(0.05)
    assert desk.asked("/oauth/revoke") == [200, 200]
    assert (await desk.signing_in.get(bearer)).status == 401


@LONG
async def test_signed_in_person_gets_responses_and_new_tokens(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.start()
    await desk.sign_in(left=60)
    monkeypatch.setattr(sessions, "GRACE", -1)
    desk.signing_in.provider.person["groups"] = ["staff"]
    status, printed = await desk.say_hello()
    assert (status, printed.endswith("Say hello\n")) == (0, True), printed
    assert desk.asked("/oauth/token")[-1:] == [200]
    record = next(
        each for each in desk.signing_in.scene.records.all if each.route == "/v1/messages"
    )
    assert (record.principal, record.groups) == ("ada", ("staff",))


@LONG
async def test_person_who_may_no_longer_is_asked_to_sign_in(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.start()
    await desk.sign_in(left=60)
    monkeypatch.setattr(sessions, "GRACE", -1)
    desk.signing_in.provider.disabled = True
    status, printed = await desk.say_hello()
    assert (status, "no longer accepts this session" in printed) == (1, True), printed
    assert "sign in again with /login" in printed
    assert desk.asked("/v1/messages") == []


@LONG
async def test_refused_model_is_one_request(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text('[[policy]]\nmodels = ["claude-haiku-*"]\nsettings = {cleanupPeriodDays = 9}')
    await desk.start(OIDC_POLICY_FILE=file)
    await desk.sign_in()
    status, printed = await desk.say_hello()
    assert status == 1
    assert "403 Your group may use the model claude-haiku-*, and the request asks for" in printed
    assert desk.asked("/v1/messages") == [403]
    assert desk.asked("/managed/settings") == [200]
    kept = json.loads((desk.home / ".claude" / "remote-settings.json").read_text())
    assert kept["cleanupPeriodDays"] == 9
    await desk.say_hello()
    assert desk.asked("/managed/settings") == [200, 304]


@LONG
async def test_spent_cap_is_shown_once(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    with budgets.database(path) as database, database.transaction() as connection:
        cap = Scope("user", "ada")
        budgets.set_cap(connection, cap, "monthly", 0, actor="test", now=time.time())
    await desk.start(BUDGETS_DB=path)
    await desk.sign_in()
    status, printed = await desk.say_hello()
    assert (status, "spend limit reached · $0.00 of $0.00 is spent" in printed) == (1, True)
    assert desk.asked("/v1/messages") == [429]


@LONG
async def test_provider_outage_keeps_people_signed_in(desk: Desk) -> None:
    await desk.start()
    await desk.sign_in()
    await desk.signing_in.provider.stop()
    status, printed = await desk.say_hello()
    assert (status, printed.endswith("Say hello\n")) == (0, True), printed


@LONG
async def test_person_is_warned_before_the_cap(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    now = time.time()
    with budgets.database(path) as database, database.transaction() as connection:
        budgets.set_cap(connection, Scope("user", "ada"), "monthly", 100_000, actor="test", now=now)
        ada: Subject = ("user", "ada")
        budgets.save(connection, Batch({(day_of(now), ada): 82_000 * NANOS_PER_CENT}))
    await desk.start(BUDGETS_DB=path)
    await desk.sign_in()
    state = {
        "hasCompletedOnboarding": True,
        "theme": "dark",
        "projects": {str(desk.home): {"hasTrustDialogAccepted": True}},
    }
    (desk.home / ".claude.json").write_text(json.dumps(state))
    terminal = Terminal(desk)
    await terminal.until("You've used 82% of your usage credits")
