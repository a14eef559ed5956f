"""A script of this folder, run in a process of its own so that its work is not the test's."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

_LINE = 1 << 20  # bytes that one answer may have
_LAST_MOMENT = 10.0  # seconds to end in


class Peer:
    """The running script."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = process.stdout

    async def says(self) -> Any:  # a JSON document may be anything
        """What it says next, waited for."""
        line = await self._stdout.readline()
        assert line, "the script has ended"
        return json.loads(line)

    async def tell(self, command: str) -> None:
        """Have it do something."""
        self._stdin.write(f"{command}\n".encode())
        await self._stdin.drain()

    async def ask(self, command: str) -> Any:  # as says
        """What it says to `command`."""
        await self.tell(command)
        return await self.says()


@asynccontextmanager
async def peer_process(script: str, *arguments: str) -> AsyncIterator[Peer]:
    """Run `script` until the block's end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name(script)),
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE,
    )
    try:
        yield Peer(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_LAST_MOMENT):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise
