"""A machine with the real Claude Code, whose administrator has named the proxy as its gateway.

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
from pathlib import Path
from typing import Any

import pytest
from signing_in import SigningIn
from tornado.testing import bind_unused_port

CLAUDE = Path(__file__).parent / "claude_code" / "node_modules" / ".bin" / "claude"

NEEDED = [
    pytest.mark.long,
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
        await self.signing_in.start(**{"PORT": self.port, "OIDC_PUBLIC_URL": self.url, **given})

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

    async def say_hello(
        self, model: str = "claude-sonnet-5-5", **variables: str
    ) -> tuple[int, str]:
        """Run one prompt in print mode; return the exit status and what is printed.

        :param variables: of its environment, besides those of the desk.
        """
        process = await asyncio.create_subprocess_exec(
            *self.command("-p", "Say hello", "--model", model),
            cwd=self.home,
            env={**self.environment(), **variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        return process.returncode or 0, printed.decode()

    def asked(self, path: str) -> list[int | None]:
        """Return the statuses of the requests for a path."""
        return [each.status for each in self.signing_in.scene.records.all if each.route == path]


class Terminal:
    """Claude Code in a terminal."""

    def __init__(self, desk: Desk, **variables: str) -> None:
        desk.terminals.append(self)
        self._text = ""
        self.process, self._file = pty.fork()
        if self.process == 0:
            os.chdir(desk.home)
            command = desk.command()
            os.execvpe(command[0], command, {**desk.environment(), **variables})
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

    async def until_code(self) -> str:
        """Wait for the code of a sign-in, and return it."""
        screen = await self.until("Waiting for sign-in")
        found = re.search(r"[A-Z]{4}-[A-Z]{4}", screen)
        assert found, screen
        return found[0]

    async def press(self, *keys: bytes) -> None:
        for key in keys:
            os.write(self._file, key)
            await asyncio.sleep(0.3)  # two keys at once would be a paste

    def close(self) -> None:
        os.kill(self.process, 9)
        os.waitpid(self.process, 0)
        os.close(self._file)
