"""Numbered requests in both dialects, and the upstream that answers each with its number.

So it can be told of every single request whether it was answered, and with what is its own.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tornadoproxy.testing import (
    TEST_TOKEN,
    RawConnection,
    RawResponse,
    ScriptedServer,
    Truncated,
    UpstreamExchange,
    json_response,
    message_document,
    message_events,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

Dialect = Literal["anthropic", "openai"]

Result = Literal["whole", "refused", "closed"]
"""Answered whole; refused in words; or not answered by a single byte."""

DIALECTS: tuple[Dialect, ...] = ("anthropic", "openai")

_PATHS = {"anthropic": "/v1/messages", "openai": "/openai/v1/chat/completions"}
_EVENT_STREAM = {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"}


class NumberingUpstream(ScriptedServer):
    """Answers with the number that a message names; a held one ends when it may.

    :ivar answered: the numbers in the order in which they came.
    :ivar may_end: set to let the held answers end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answered: list[int] = []
        self.may_end = asyncio.Event()

    async def default_response(self, exchange: UpstreamExchange) -> None:
        document = json.loads(await exchange.body())
        asked = re.search(r"number (\d+)( held)?", json.dumps(document["messages"]))
        assert asked
        number = int(asked[1])
        self.answered.append(number)
        message = message_document(response_text(number), id=f"msg_{number}")
        if document.get("stream"):
            await exchange.head(200, _EVENT_STREAM)
            first, *rest = message_events(message)
            await exchange.chunk(first)
            await self._hold(exchange, held=bool(asked[2]))
            for event in rest:
                await exchange.chunk(event)
            await exchange.last_chunk()
        else:
            await self._hold(exchange, held=bool(asked[2]))
            await json_response(message)(exchange)

    async def _hold(self, exchange: UpstreamExchange, *, held: bool) -> None:
        if not held:
            return
        may_end = asyncio.create_task(self.may_end.wait())
        gone = asyncio.create_task(exchange.disconnected())
        try:
            await asyncio.wait((may_end, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            may_end.cancel()
            gone.cancel()
        if exchange.dead:
            raise ConnectionError("the proxy left")


def response_text(number: int) -> str:
    """What the request of this number is answered with."""
    return f"this answers number {number} and no other " * 5


@dataclass(frozen=True)
class Numbered:
    """One request."""

    number: int
    dialect: Dialect
    stream: bool = False
    held: bool = False

    @property
    def data(self) -> bytes:
        """The request's bytes."""
        content = f"number {self.number}{' held' if self.held else ''}"
        document = {
            "model": "claude-sonnet-5-5",
            "max_tokens": 99,
            "stream": self.stream,
            "messages": [{"role": "user", "content": content}],
        }
        return request_bytes(
            "POST",
            _PATHS[self.dialect],
            {
                "Content-Type": "application/json",
                "Anthropic-Version": "2023-06-01",
                "X-Claude-Code-Session-Id": str(self.number),
            },
            json.dumps(document).encode(),
            token=TEST_TOKEN,
        )

    def check_whole(self, response: RawResponse) -> None:
        """See that `response` is all of this request's answer, and of no other's."""
        assert response.status == 200
        text = response_text(self.number)
        if self.dialect == "anthropic":
            message = message_document(text, id=f"msg_{self.number}")
            whole = b"".join(message_events(message))
            assert response.body == (whole if self.stream else json.dumps(message).encode())
        elif self.stream:
            stream = response.body.decode().replace(": ping\n\n", "")
            *chunks, done = stream.removesuffix("\n\n").split("\n\n")
            assert done == "data: [DONE]"
            choices = [json.loads(each.removeprefix("data: "))["choices"][0] for each in chunks]
            assert "".join(each["delta"].get("content") or "" for each in choices) == text
            assert choices[-1]["finish_reason"] == "stop"
        else:
            assert json.loads(response.body)["choices"][0]["message"]["content"] == text

    def check_refused(self, response: RawResponse) -> None:
        """See that `response` refuses this request for now, in its dialect's shape."""
        assert response.status in {503, 529}
        document = json.loads(response.body)
        assert document["error"]["message"]
        assert (document.get("type") == "error") is (self.dialect == "anthropic")


class Client:
    """A connection on which one numbered request follows the other.

    :ivar results: what became of each, by its number.
    """

    def __init__(self, port: int, numbers: Iterator[int], results: dict[int, Result]) -> None:
        self.results = results
        self.may_end = False
        self._port = port
        self._numbers = numbers

    async def ask_until_closed(self, dialect: Dialect) -> int:
        """Ask again and again on one connection until that ends; the number of whole answers."""
        try:
            connection = await RawConnection.open(self._port)
        except (ConnectionRefusedError, ConnectionResetError):
            return 0
        whole = 0
        try:
            while not self.may_end:
                request = Numbered(next(self._numbers), dialect, stream=whole % 2 == 1)
                result, goes_on = await ask(connection, request)
                self.results[request.number] = result
                whole += result == "whole"
                if not goes_on:
                    break
        finally:
            await connection.close()
        return whole

    async def come_again_until_refused(self, dialect: Dialect) -> None:
        """Ask on a new connection each time, until nobody listens."""
        while not self.may_end:
            try:
                connection = await RawConnection.open(self._port)
            except (ConnectionRefusedError, ConnectionResetError):
                return
            request = Numbered(next(self._numbers), dialect)
            self.results[request.number], _ = await ask(connection, request)
            await connection.close()


async def ask(connection: RawConnection, request: Numbered) -> tuple[Result, bool]:
    """What became of `request`, and whether the connection goes on."""
    try:
        await connection.send(request.data)
        response = await connection.response()
    except ConnectionError:
        return "closed", False
    except Truncated as cut:
        if cut.response is None and str(cut).endswith("unread: b''"):
            return "closed", False
        raise
    goes_on = response.header("Connection") != "close"
    if response.status == 200:
        request.check_whole(response)
        return "whole", goes_on
    request.check_refused(response)
    return "refused", goes_on
