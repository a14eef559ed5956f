"""With the optional plugins off, the core serves as ever, and they cost nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, TypeAlias

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    request_bytes,
)

if TYPE_CHECKING:
    from pathlib import Path
    from types import FrameType

    from anthropic import AsyncAnthropic
    from openai import AsyncOpenAI
    from tornado.ioloop import IOLoop

    from tornadoproxy.testing import Proxy, Records, StartProxy

OPTIONAL = ("prices", "keys", "ledger", "budgets", "metrics", "otel")
MODEL = "claude-sonnet-5-5"
SAID = "Grüße!"
RESPONSE = f"This is a scripted answer, not Claude's. You said: {SAID}"


@pytest.fixture
def proxy(io_loop: IOLoop, start_proxy: StartProxy) -> Proxy:
    """A proxy without any optional plugin, in place of the usual one."""

    async def start() -> Proxy:
        return await start_proxy(DISABLED_PLUGINS=" ".join(OPTIONAL))

    proxy: Proxy = io_loop.run_sync(start)
    return proxy


# -- the core alone


async def test_the_anthropic_sdk_is_served(
    proxy: Proxy, anthropic_client: AsyncAnthropic, records: Records
) -> None:
    states = {info.name: info.state for info in proxy.plugins.describe()}
    assert {states[name] for name in OPTIONAL} == {"disabled"}
    message = await anthropic_client.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": SAID}]
    )
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": RESPONSE}]
    async with anthropic_client.messages.stream(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": SAID}]
    ) as stream:
        assert "".join([text async for text in stream.text_stream]) == RESPONSE
    for number in (1, 2):
        record = await records.finished(number)
        assert (record.outcome, record.status) == ("completed", 200)
        # the core reads it; what it costs, nobody says
        assert record.usage.output_tokens == message.usage.output_tokens
        assert record.cost is None


async def test_the_openai_sdk_is_served(openai_client: AsyncOpenAI, records: Records) -> None:
    response = await openai_client.chat.completions.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": SAID}]
    )
    assert response.choices[0].message.content == RESPONSE
    chunks = await openai_client.chat.completions.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": SAID}], stream=True
    )
    texts = [choice.delta.content or "" async for chunk in chunks for choice in chunk.choices]
    assert "".join(texts) == RESPONSE
    assert {model.id async for model in openai_client.models.list()} >= {MODEL}
    for number in (1, 2, 3):
        record = await records.finished(number)
        assert (record.outcome, record.status, record.cost) == ("completed", 200, None)


# -- what they cost: the functions that serving a request calls

# a module, and a function's name and first line in it
Function: TypeAlias = tuple[str, str, int]

# the client and the upstream run in the same thread, and are no part of what is counted
THE_TESTS_OWN = {
    f"tornadoproxy.{name}"
    for name in ("byte_stream", "raw_connection", "scripted_server", "scripted_upstream", "testing")
}
ROUNDS = 8
WARM_UP = 3

REQUESTS = {
    "JSON": ("/v1/messages", False),
    "SSE": ("/v1/messages", True),
    "chat JSON": ("/openai/v1/chat/completions", False),
    "chat SSE": ("/openai/v1/chat/completions", True),
}
each_kind = pytest.mark.parametrize("kind", REQUESTS)


async def calls(proxy: Proxy, records: Records, kind: str) -> Counter[Function]:
    """How often each function of ours is called to serve a request, once it runs warm.

    A timer or a packet cut in two adds calls to one round or another, and never takes any away:
    what each round has is what the request itself takes.
    """
    path, stream = REQUESTS[kind]
    messages = [{"role": "user", "content": SAID}]
    document = {"model": MODEL, "max_tokens": 100, "stream": stream, "messages": messages}
    request = request_bytes("POST", path, body=json.dumps(document).encode(), token=TEST_TOKEN)
    connection = await RawConnection.open(proxy.port)
    rounds = []
    for number in range(WARM_UP + ROUNDS):
        found: Counter[Function] = Counter()

        def count(
            frame: FrameType, event: str, _: object, found: Counter[Function] = found
        ) -> None:
            module = str(frame.f_globals.get("__name__", ""))
            if (
                event == "call"
                and module.startswith("tornadoproxy")
                and module not in THE_TESTS_OWN
            ):
                code = frame.f_code
                found[module, code.co_qualname, code.co_firstlineno] += 1

        before = len(records.all)
        sys.setprofile(count)
        try:
            await connection.send(request)
            response = await connection.response()
            record = await records.finished(before + 1)
            for _ in range(5):
                await asyncio.sleep(0)  # what is left to be done after the record
        finally:
            sys.setprofile(None)
        assert (response.status, record.outcome) == (200, "completed")
        assert RESPONSE.split()[0].encode() in response.body
        if number >= WARM_UP:
            rounds.append(found)
    await connection.close()
    return reduce(and_, rounds)


@each_kind
async def test_an_inactive_plugin_costs_no_call(
    kind: str, start_proxy: StartProxy, records: Records
) -> None:
    without = await start_proxy(DISABLED_PLUGINS=" ".join(OPTIONAL))
    # prices is the one that is active unless it is disabled
    at_rest = await start_proxy(DISABLED_PLUGINS="prices")
    states = {info.name: info.state for info in at_rest.plugins.describe()}
    assert {states[name] for name in OPTIONAL[1:]} == {"inactive"}

    expected = await calls(without, records, kind)
    found = await calls(at_rest, records, kind)

    assert sum(expected.values()) > 50
    assert {module.partition(".")[0] for module, _, _ in expected} == {
        *("tornadoproxy", "tornadoproxy_token", "tornadoproxy_access_log")
    }
    assert found - expected == Counter()
    assert expected - found == Counter()


@each_kind
async def test_an_active_one_costs_its_own_calls_alone(
    kind: str, start_proxy: StartProxy, records: Records, tmp_path: Path
) -> None:
    """Were this not seen, the test above would mean nothing."""
    without = await start_proxy(DISABLED_PLUGINS=" ".join(OPTIONAL))
    active = await start_proxy(DISABLED_PLUGINS="prices", LEDGER_DB=tmp_path / "ledger.db")

    expected = await calls(without, records, kind)
    found = await calls(active, records, kind)

    assert expected - found == Counter()
    added = {(module, name) for module, name, _ in found - expected}
    added.remove(("tornadoproxy.plugin.manager", "Plugins.tell"))
    assert {module for module, _ in added} == {
        "tornadoproxy_ledger",
        "tornadoproxy.storage.database",
    }
    assert ("tornadoproxy_ledger", "Ledger.request_finished") in added
    assert ("tornadoproxy.storage.database", "Database.write_behind") in added


# -- what they cost: the libraries that a start imports

SERVES = """
import sys

from tornadoproxy.__main__ import main

status = main()
print("modules:", *sys.modules)
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("disabled", "never"),
    [
        ({}, {"sqlite3", "prometheus_client", "opentelemetry"}),
        (
            {"DISABLED_PLUGINS": "prices"},
            {"sqlite3", "prometheus_client", "opentelemetry", "tomllib"},
        ),
    ],
    ids=["the defaults", "without prices"],
)
def test_a_start_imports_no_library_of_a_plugin_that_is_off(
    disabled: dict[str, str], never: set[str], tmp_path: Path
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "PORT": "0",
        "AUTH_TOKEN": TEST_TOKEN,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        **disabled,
    }
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", SERVES, "serve"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        assert program.stdout is not None
        for line in program.stdout:
            lines.append(line)
            if line.startswith("curl "):
                program.send_signal(signal.SIGTERM)
    assert program.returncode == 0, "".join(lines)

    (imported,) = (set(line.split()[1:]) for line in lines if line.startswith("modules: "))
    # they are looked at, all of them, and so far it costs nothing
    assert imported >= {f"tornadoproxy_{name}" for name in OPTIONAL[1:]}
    assert ("tornadoproxy_prices" in imported) == (not disabled)
    assert {name.partition(".")[0] for name in imported} & never == set()
