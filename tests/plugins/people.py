"""What the tests of plugins share: people known by name, their messages, databases and commands."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import sqlite3
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from scene import Scene

from tornadoproxy import (
    ConfigurationError,
    DatabaseLocation,
    Follower,
    Identity,
    IncomingRequest,
    Setting,
    Settings,
    hookimpl,
)
from tornadoproxy.testing import (
    Proxy,
    RawConnection,
    RawResponse,
    Response,
    UpstreamExchange,
    request_bytes,
)

MODEL = "claude-sonnet-5-5"
MESSAGES, CHAT = "/v1/messages", "/openai/v1/chat/completions"
RESPONSES = "/openai/v1/responses"

Document = dict[str, Any]  # Any: JSON


class People:
    """An authenticator: each credential is a name, as ``ada``, or ``ada+team`` with a group."""

    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        for candidate in request.candidates():
            name, *groups = candidate.reveal().decode().split("+")
            return Identity(name, groups=tuple(groups))
        return None


def message(max_tokens: int = 50, *, content: str = "Hi", **fields: object) -> Document:
    """The body of a request for a message, or for a chat completion."""
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "max_tokens": max_tokens, "messages": messages, **fields}


def response(max_output_tokens: int = 50, **fields: object) -> Document:
    """The body of a request for a response of OpenAI's."""
    return {"model": MODEL, "max_output_tokens": max_output_tokens, "input": "Hi", **fields}


def error_of(response: RawResponse) -> dict[str, str]:
    error: dict[str, str] = json.loads(response.body)["error"]
    return error


class Stored:
    """What a plugin keeps in a database.

    :ivar where: the database.
    """

    def __init__(self, where: DatabaseLocation) -> None:
        self.where = where

    @property
    def path(self) -> Path:
        """The database, if it is a file."""
        assert isinstance(self.where, Path)
        return self.where


class Served(Stored):
    """The same behind proxies, with what surrounds them."""

    def __init__(self, scene: Scene, where: DatabaseLocation) -> None:
        super().__init__(where)
        self.start_proxy, self.request, self.raw = scene.start, scene.ask, scene.raw
        self.upstream, self.records = scene.upstream, scene.records

    async def begin(self, token: str, to: Proxy | None = None) -> RawConnection:
        """Send a request for a message, and return once the upstream has its head."""
        before = len(self.upstream.requests)
        connection = await self.raw(to)
        body = json.dumps(message()).encode()
        await connection.send(request_bytes("POST", MESSAGES, body=body, token=token))
        await self.upstream.received(before + 1)
        return connection


class Held:
    """A response that the upstream holds back until the test releases it."""

    def __init__(self, response: Response) -> None:
        self.released = asyncio.Event()
        self._response = response

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await self.released.wait()
        await self._response(exchange)


follower_intervals = pytest.mark.parametrize(
    "interval", [0.05, pytest.param(Follower.INTERVAL, marks=pytest.mark.long)]
)
"""For a test of a change at another process: seconds between two looks at the database."""


async def pause() -> None:
    """Wait a moment before the next look at what no event reports.

    A loop of requests without it keeps a core busy.
    """
    await asyncio.sleep(0.02)


async def until(status: int, ask: Callable[[], Awaitable[RawResponse]]) -> RawResponse:
    """Call `ask` until the response has `status`."""
    async with asyncio.timeout(10):
        while (response := await ask()).status != status:
            await pause()
    return response


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a database within another connection's transaction."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def run_command(
    plugin: Any,  # one with one command
    values: Mapping[Setting[Any], object],  # Any: each setting has a type of its own
    *arguments: str,
) -> subprocess.CompletedProcess[str]:
    """Run a plugin's command in this process; errors end it as in the program."""
    (command,) = plugin.commands()
    parser = argparse.ArgumentParser(command.name)
    command.add_arguments(parser)
    settings = Settings.defaults(*plugin.declare_settings()).replace(values)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            status = command.run(parser.parse_args(arguments), settings)
        except ConfigurationError as error:
            status = 2
            errors.write(f"tornadoproxy: {error}\n")
        except SystemExit as error:
            status = int(error.code or 0)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
