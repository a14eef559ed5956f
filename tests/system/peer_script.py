"""What a script that serves a test has in common with others: it hears lines, and says JSON.

It ends with its standard input, so that none outlives its test.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import AsyncIterator, Coroutine

from tornadoproxy.server import runner


def start(main: Coroutine[object, object, int]) -> None:
    """Run `main` with as many descriptors as the system allows; its result is the exit status."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sys.exit(runner.run(main))


def say(document: object) -> None:
    """Tell the test something."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


async def commands() -> AsyncIterator[str]:
    """What the test says, line by line, until it says no more."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    async for line in reader:
        yield line.decode().strip()
