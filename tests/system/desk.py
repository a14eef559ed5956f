"""The real Claude Code, and a machine whose administrator has named the proxy as its gateway.

Claude Code reads the gateway's URL from one file below /etc, which is a copy of /etc for it alone,
in a mount namespace of its own. It reaches loopback only: all else would go through an HTTPS proxy
that is not there.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from program import printed_by
from signing_in import SigningIn

CLAUDE = Path(__file__).parent / "claude_code" / "node_modules" / ".bin" / "claude"

INSTALLED = [
    pytest.mark.long,
    pytest.mark.skipif(not CLAUDE.exists(), reason="skipped: needs Claude Code, installed by npm"),
]
NEEDED = [
    *INSTALLED,
    pytest.mark.skipif(
        os.getuid() != 0 or shutil.which("unshare") is None,
        reason="skipped: needs root and unshare, for a mount namespace",
    ),
]

LONG = pytest.mark.gen_test(timeout=55)  # it takes long to start while other tests run

ANSI = re.compile(r"\x1b\][^\x07]*\x07|\x1b\[[0-9;?<>]*[A-Za-z]|\x1b[=>()][A-Za-z0-9]?")
UP, DOWN, ENTER = b"\x1b[A", b"\x1b[B", b"\r"


def environment(home: Path) -> dict[str, str]:
    """Return the environment of each Claude Code."""
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "DISABLE_AUTOUPDATER": "1",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
    }


async def run_prompt(
    command: list[str], home: Path, variables: Mapping[str, str]
) -> tuple[int, str]:
    """Run one prompt in print mode; return the exit status and what is printed.

    :param command: what starts Claude Code.
    :param variables: its whole environment.
    """
    process = await asyncio.create_subprocess_exec(
        *(*command, "-p", "Say hello", "--model", "claude-sonnet-5-5"),
        cwd=home,
        env=variables,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await printed_by(process)
    return process.returncode or 0, printed.decode()


class Desk:
    """A machine with Claude Code, whose administrator has named the gateway."""

    def __init__(self, signing_in: SigningIn, directory: Path, port: int) -> None:
        self.signing_in = signing_in
        self.port = port
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
        await self.signing_in.start(**{"PORT": self.port, "OIDC_PUBLIC_URL": self.url, **given})

    @property
    def command(self) -> list[str]:
        inner = 'mount --bind "$0" /etc && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", inner, str(self.etc), str(CLAUDE)]

    def environment(self, **variables: str) -> dict[str, str]:
        own = {"TERM": "xterm-256color", "CLAUDE_CODE_MAX_RETRIES": "0"}
        return {**environment(self.home), **own, **variables}

    @property
    def credentials(self) -> Path:
        return self.home / ".claude" / ".credentials.json"

    async def sign_in(self, *, left: float = 3600) -> dict[str, Any]:
        """Sign in, and keep what Claude Code keeps of it.

        :param left: seconds until the bearer ends, as Claude Code knows it.
        """
        tokens = await self.signing_in.sign_in()
        self.keep(tokens, left=left)
        return tokens

    def keep(self, tokens: dict[str, Any], *, left: float) -> None:
        """Keep tokens where Claude Code keeps them."""
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

    def skip_first_screens(self) -> None:
        """Have an interactive start show the prompt at once."""
        trusted = {str(self.home): {"hasTrustDialogAccepted": True}}
        state = {"hasCompletedOnboarding": True, "theme": "dark", "projects": trusted}
        (self.home / ".claude.json").write_text(json.dumps(state))

    async def say_hello(self, **variables: str) -> tuple[int, str]:
        """Run one prompt; see `run_prompt`.

        :param variables: of its environment, besides those of the desk.
        """
        return await run_prompt(self.command, self.home, self.environment(**variables))

    async def begin(self) -> Terminal:
        """Begin a sign-in in a new terminal, up to the request for a code."""
        terminal = Terminal(self)
        await terminal.until("Choose the text style")
        await terminal.press(ENTER)
        await terminal.until("Enter to connect")
        await terminal.press(ENTER)
        return terminal

    def asked(self, path: str) -> list[int | None]:
        """Return the statuses of the requests for a path."""
        return [each.status for each in self.signing_in.scene.records.all if each.route == path]

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for the request after which this is true."""
        records = self.signing_in.scene.records
        async with asyncio.timeout(20):
            while not reached():
                await records.finished(len(records.all) + 1)


@pytest.fixture
def desk(signing_in: SigningIn, tmp_path: Path, free_port: int) -> Iterator[Desk]:
    desk = Desk(signing_in, tmp_path, free_port)
    yield desk
    for terminal in desk.terminals:
        terminal.close()


class Terminal:
    """Claude Code in a terminal."""

    def __init__(self, desk: Desk, **variables: str) -> None:
        desk.terminals.append(self)
        self._text = ""
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.chdir(desk.home)
            os.execvpe(desk.command[0], desk.command, desk.environment(**variables))
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

    async def trust(self) -> None:
        """Trust the gateway, which asks for a code."""
        await self.until("No, go back")
        await self.press(UP, ENTER)

    async def press(self, *keys: bytes) -> None:
        for key in keys:
            os.write(self._file, key)
            await asyncio.sleep(0.3)  # two keys at once would be a paste

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self._file)


def code_of(screen: str) -> str:
    """Return the code of a sign-in."""
    found = re.search(r"[A-Z]{4}-[A-Z]{4}", screen)
    assert found, screen
    return found[0]
