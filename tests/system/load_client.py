"""Clients in numbers: a script, called with the name of a scenario and its arguments in JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Callable, Coroutine

from load_content import Dialect, How, commands, fault_of, request, say, start

from tornadoproxy.fakes.raw_client import RawConnection

_AT_ONCE = 100  # connections being opened
_PATIENCE = 20.0  # seconds for one request
_FAULTS = 10  # that are reported at most


async def hold(port: int, count: int, leaving: int) -> None:
    """Open `count` streams, half in each dialect, that stay open after their first event.

    Says so when all are. At a command, the first `leaving` of them leave, and it says that. The
    others are to end when the upstream goes on; it says how many were whole, and what was not.
    """
    room = asyncio.Semaphore(_AT_ONCE)
    is_open = asyncio.Semaphore(0)
    leave = asyncio.Event()
    left = asyncio.Semaphore(0)
    faults: list[str] = []

    async def stream(number: int) -> None:
        dialect: Dialect = "openai" if number % 2 else "anthropic"
        async with room:
            connection = await RawConnection.open(port)
            await connection.send(request(dialect, "hold", number))
            response = await connection.head()
            response.body = await connection.chunk()
        is_open.release()
        if number <= leaving:
            await leave.wait()
            await (connection.reset() if number % 3 else connection.close())
            left.release()
            return
        while chunk := await connection.chunk():
            response.body += chunk
        if fault := fault_of(dialect, "hold", number, response):
            faults.append(fault)
        await connection.close()

    streams = [asyncio.create_task(stream(number)) for number in range(1, count + 1)]
    for _ in range(count):
        await is_open.acquire()
    say({"open": count})
    if leaving:
        await anext(commands())
        leave.set()
        for _ in range(leaving):
            await left.acquire()
        say({"left": leaving})
    ends = await asyncio.gather(*streams, return_exceptions=True)
    faults += [repr(end) for end in ends if end is not None]
    say({"whole": count - leaving - len(faults), "faults": faults[:_FAULTS]})


async def ask(port: int, first: int, count: int, at_once: int) -> None:
    """Make `count` requests, numbered from `first`, of which every tenth leaves early.

    It says how many responses were right, how many clients disconnected, and what was wrong.
    """
    numbers = iter(range(first, first + count))
    done: Counter[str] = Counter()
    faults: list[str] = []

    async def client() -> None:
        connection = await RawConnection.open(port)
        for number in numbers:
            async with asyncio.timeout(_PATIENCE):
                if number % 10:
                    fault = await _answered(connection, number)
                    done["answered"] += 1
                    faults.extend([fault] if fault else [])
                else:
                    await _left(connection, number)
                    done["left"] += 1
                    connection = await RawConnection.open(port)
        await connection.close()

    async with asyncio.TaskGroup() as clients:
        for _ in range(at_once):
            clients.create_task(client())
    say({**done, "faults": faults[:_FAULTS]})


async def _answered(connection: RawConnection, number: int) -> str | None:
    dialect: Dialect = "openai" if number % 10 in {1, 2, 3} else "anthropic"
    how: How = "stream" if number % 10 in {3, 4, 5} else "json"
    await connection.send(request(dialect, how, number))
    return fault_of(dialect, how, number, await connection.response())


async def _left(connection: RawConnection, number: int) -> None:
    """Leave within the response, by FIN or by RST, in either dialect."""
    variant = number // 10
    dialect: Dialect = "openai" if variant & 1 else "anthropic"
    await connection.send(request(dialect, "hold", number))
    await connection.head()
    await connection.chunk()
    await (connection.reset() if variant & 2 else connection.close())


_SCENARIOS: dict[str, Callable[..., Coroutine[object, object, None]]] = {
    scenario.__name__: scenario for scenario in (hold, ask)
}


async def main(scenario: str, arguments: str) -> int:
    """Run a scenario."""
    await _SCENARIOS[scenario](**json.loads(arguments))
    return 0


if __name__ == "__main__":
    start(main(*sys.argv[1:]))
