"""Plugins in a served proxy: deciding ones fail closed, observing ones change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy import AuthenticationFailed, Denied, Identity, Secret, hookimpl
from tornadoproxy.testing import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    RawConnection,
    request_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tornadoproxy import IncomingRequest, RequestRecord
    from tornadoproxy.testing import (
        OpenRaw,
        RawResponse,
        Records,
        ScriptedUpstream,
        StartProxy,
    )

# a protected page of each dialect, and what whoever is let in finds there
PAGES = {"/v1/models": 200, "/openai/nothing-here": 404}

each_page = pytest.mark.parametrize("page", PAGES)


class Deciding:
    """An authenticator that does with each request what it was made with."""

    def __init__(self, decide: Callable[[IncomingRequest], object]) -> None:
        self._decide = decide
        self.asked = 0

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Any:  # Any: that is what is tested
        self.asked += 1
        return self._decide(request)


class First(Deciding):
    @hookimpl(tryfirst=True)
    def authenticate(self, request: IncomingRequest) -> Any:  # Any: that is what is tested
        return super().authenticate(request)


class Last(Deciding):
    @hookimpl(trylast=True)
    def authenticate(self, request: IncomingRequest) -> Any:  # Any: that is what is tested
        return super().authenticate(request)


async def get(raw: OpenRaw, page: str, *, token: str | None = TEST_TOKEN) -> RawResponse:
    client = await raw()
    await client.send(request_bytes("GET", page, token=token))
    return await client.response()


def error_of(response: RawResponse, page: str) -> dict[str, Any]:
    """The error's members, taken out of the shape of the page's dialect."""
    assert response.header("content-type") == "application/json"
    document = json.loads(response.body)
    if page.startswith("/openai/"):
        assert document.keys() == {"error"}
        assert document["error"].keys() == {"message", "type", "param", "code"}
    else:
        assert document.keys() == {"type", "error", "request_id"}
        assert document["type"] == "error"
        assert document["error"].keys() == {"type", "message"}
        assert document["request_id"] == response.header("request-id")
    error: dict[str, Any] = document["error"]
    return error


# -- an authenticator that fails


def presented(request: IncomingRequest) -> str:
    """What a careless plugin puts into its messages."""
    (secret,) = request.candidates()
    return secret.reveal().decode()


def raises(request: IncomingRequest) -> Identity:
    raise KeyError(presented(request))


def raises_from(request: IncomingRequest) -> Identity:
    try:
        return raises(request)
    except KeyError as error:
        raise RuntimeError(f"no such user: {presented(request)}") from error


def raises_within(request: IncomingRequest) -> Identity:
    people: dict[str, Identity] = {}
    try:
        return raises(request)
    except KeyError:
        return people[presented(request)]


def raises_group(request: IncomingRequest) -> Identity:
    raise ExceptionGroup(presented(request), [ValueError(presented(request))])


def raises_with_note(request: IncomingRequest) -> Identity:
    error = ValueError()
    error.add_note(presented(request))
    raise error


def cancels(request: IncomingRequest) -> Identity:
    raise asyncio.CancelledError(presented(request))


async def raises_later(request: IncomingRequest) -> Identity:
    await asyncio.sleep(0)
    raise KeyError(presented(request))


async def cancels_later(request: IncomingRequest) -> Identity:
    await asyncio.sleep(0)
    raise asyncio.CancelledError(presented(request))


async def hangs(request: IncomingRequest) -> Identity:
    await asyncio.Event().wait()
    raise AssertionError("never")


async def hangs_and_will_not_be_cancelled(request: IncomingRequest) -> Identity:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return Identity("late")


async def hangs_and_then_raises(request: IncomingRequest) -> Identity:
    try:
        await asyncio.Event().wait()
    finally:
        raise KeyError(presented(request))


async def later(result: object) -> object:
    await asyncio.sleep(0)
    return result


FAILING: dict[str, Callable[[IncomingRequest], object]] = {
    "raises": raises,
    "raises_from": raises_from,
    "raises_within": raises_within,
    "raises_group": raises_group,
    "raises_with_note": raises_with_note,
    "cancels": cancels,
    "raises_later": raises_later,
    "cancels_later": cancels_later,
    "hangs": hangs,
    "hangs_and_will_not_be_cancelled": hangs_and_will_not_be_cancelled,
    "hangs_and_then_raises": hangs_and_then_raises,
    "str": presented,
    "bytes": lambda request: presented(request).encode(),
    "dict": lambda request: {"principal": presented(request)},
    "secret": lambda request: request.candidates()[0],
    "true": lambda request: True,
    "false": lambda request: False,
    "zero": lambda request: 0,
    "empty": lambda request: (),
    "class": lambda request: Identity,
    "nobody": lambda request: Identity(""),
    "not_a_name": lambda request: Identity(Secret("x")),  # type: ignore[arg-type]  # on purpose
    "function": lambda request: presented,
    "generator": lambda request: (presented(request) for _ in range(1)),
    "later_true": lambda request: later(True),
    "later_str": lambda request: later(presented(request)),
    "later_class": lambda request: later(Identity),
    "later_later": lambda request: later(later(Identity("x"))),
    "later_nobody": lambda request: later(Identity("")),
}


@pytest.mark.parametrize("name", FAILING)
async def test_an_authenticator_that_fails_is_503_and_nothing_goes_upstream(
    name: str,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    next_one = Deciding(lambda request: Identity("next"))
    plugins = {f"a_{name}": Deciding(FAILING[name]), "b_next": next_one}
    await start_proxy(plugins=plugins, PLUGIN_TIMEOUT=0.05)

    for page, token in (("/v1/models", TEST_TOKEN), ("/openai/nothing-here", "wrong-guess")):
        response = await get(raw, page, token=token)
        # neither 401, at which key helpers would fetch new keys, nor 200
        assert response.status == 503
        assert int(response.header("retry-after") or "") >= 1
        error = error_of(response, page)
        assert error["message"]
        if page == "/v1/models":
            assert error["type"] == "overloaded_error"
        said = response.raw_head + response.body
        assert token.encode() not in said
        assert name.encode() not in said

    assert upstream.connections == 0
    assert next_one.asked == 0
    await records.finished(2)
    assert [(each.status, each.outcome, each.principal) for each in records.all] == [
        (503, "failed", None)
    ] * 2
    told = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(told) == 2
    assert all(f"'a_{name}'" in record.getMessage() for record in told)
    for secret in (TEST_TOKEN, "wrong-guess"):
        assert secret not in caplog.text
        assert all(secret not in repr(record.__dict__) for record in caplog.records)
        assert secret not in repr(records.all)


async def test_the_log_tells_where_an_authenticator_failed(
    start_proxy: StartProxy, raw: OpenRaw, caplog: pytest.LogCaptureFixture
) -> None:
    await start_proxy(plugins={"careless": Deciding(raises_from)})

    await get(raw, "/v1/models")

    assert "'careless'" in caplog.text
    assert "RuntimeError" in caplog.text
    assert "in raises_from" in caplog.text
    assert "test_plugins_served.py" in caplog.text


async def test_a_proxy_goes_on_after_a_failure(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    results = iter([raises, hangs, presented, FAILING["true"], None])

    def decide(request: IncomingRequest) -> object:
        result = next(results)
        return result and result(request)

    await start_proxy(plugins=[Deciding(decide)], PLUGIN_TIMEOUT=0.05)
    client = await raw()

    statuses = []
    for _ in range(5):
        await client.send(request_bytes("GET", "/v1/models", token=TEST_TOKEN))
        statuses.append((await client.response()).status)

    assert statuses == [503, 503, 503, 503, 200]
    assert (await records.finished(5)).principal == "token"


# -- an authenticator that decides


@pytest.mark.parametrize(
    "decide",
    [
        lambda request: Identity("alice"),
        lambda request: later(Identity("alice")),
        lambda request: asyncio.ensure_future(later(Identity("alice"))),
    ],
)
async def test_sync_and_async_authenticators_let_in(
    decide: Callable[[IncomingRequest], object],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(plugins=[Deciding(decide)])
    client = await raw()

    body = b'{"model":"m"}' * 1000
    await client.send(request_bytes("POST", "/v1/anything", body=body, token="no-token-of-ours"))

    assert (await client.response()).status == 404
    record = await records.finished()
    assert (record.principal, record.outcome) == ("alice", "completed")
    (received,) = upstream.requests
    assert received.body == body
    assert received.all("x-api-key") == [TEST_UPSTREAM_KEY]
    assert b"no-token-of-ours" not in received.raw_head


async def test_an_authenticator_sees_the_request_as_it_came(
    start_proxy: StartProxy, raw: OpenRaw
) -> None:
    seen: list[IncomingRequest] = []

    def look(request: IncomingRequest) -> Identity:
        seen.append(request)
        return Identity("alice")

    await start_proxy(plugins=[Deciding(look)])
    client = await raw()
    lines = [("X-Twice", "1"), ("X-Twice", "2")]
    await client.send(request_bytes("PUT", "/v1/a%20b?c=d", lines))
    await client.response()

    (request,) = seen
    assert (request.method, request.path, request.remote_ip) == ("PUT", "/v1/a%20b", "127.0.0.1")
    assert request.dialect.value == "anthropic"
    assert request.headers.get_list("x-twice") == ["1", "2"]


async def test_order_of_the_asked_and_none_falls_through(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    asked: list[str] = []

    def none(name: str, *, awaited: bool = False) -> Callable[[IncomingRequest], object]:
        def decide(request: IncomingRequest) -> object:
            asked.append(name)
            return later(None) if awaited else None

        return decide

    proxy = await start_proxy(
        plugins={
            "a": Deciding(none("a", awaited=True)),
            "b": Deciding(none("b")),
            "c": Last(none("c")),
            "d": First(none("d")),
            "z": Last(none("z", awaited=True)),
        }
    )

    assert (await get(raw, "/v1/models")).status == 200

    # the token plugin is one of those that are asked last, and answers before "z" is
    assert asked == ["d", "a", "b", "c"]
    assert (await records.finished()).principal == "token"
    authenticators = [
        info.name
        for info in proxy.plugins.describe()
        if info.state == "active" and "authenticate" in info.hooks
    ]
    assert authenticators == ["d", "a", "b", "c", "token", "z"]


@each_page
async def test_if_nobody_answers_it_is_401(
    page: str, start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    plugins = {"sync": Deciding(lambda request: None), "later": First(lambda request: later(None))}
    await start_proxy(plugins=plugins, DISABLED_PLUGINS="token")

    response = await get(raw, page)

    assert response.status == 401
    assert response.header("www-authenticate") == "Bearer"
    assert error_of(response, page)["message"]
    assert upstream.connections == 0


async def test_the_first_answer_wins(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    second = Deciding(lambda request: Identity("second"))
    await start_proxy(
        plugins={"a": Deciding(lambda request: later(Identity("first"))), "b": second}
    )

    assert (await get(raw, "/v1/models")).status == 200

    assert (await records.finished()).principal == "first"
    assert second.asked == 0


def fails_to_authenticate(request: IncomingRequest) -> Identity:
    raise AuthenticationFailed("Your badge has expired: get a new one.")


async def fails_to_authenticate_later(request: IncomingRequest) -> Identity:
    await asyncio.sleep(0)
    raise AuthenticationFailed("Your badge has expired: get a new one.")


@pytest.mark.parametrize("decide", [fails_to_authenticate, fails_to_authenticate_later])
@each_page
async def test_authentication_failed_is_401_and_the_next_is_not_asked(
    page: str,
    decide: Callable[[IncomingRequest], object],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(plugins=[Deciding(decide)])

    response = await get(raw, page)  # with the right token

    assert response.status == 401
    assert response.header("www-authenticate") == "Bearer"
    assert error_of(response, page)["message"] == "Your badge has expired: get a new one."
    record = await records.finished()
    assert (record.status, record.outcome, record.principal) == (401, "denied", None)
    assert upstream.connections == 0


def denies(request: IncomingRequest) -> Identity:
    raise Denied(
        "Bob's budget is used up: ask Alice.",
        status=429,
        error_type="billing_error",
        code="insufficient_quota",
        param="model",
        retry_after=41.2,
        headers={"X-Should-Retry": "false", "X-Budget": "0"},
    )


async def denies_later(request: IncomingRequest) -> Identity:
    await asyncio.sleep(0)
    return denies(request)


@pytest.mark.parametrize("decide", [denies, denies_later])
@each_page
async def test_denied_has_its_status_type_message_and_headers(
    page: str,
    decide: Callable[[IncomingRequest], object],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    await start_proxy(plugins=[Deciding(decide)])

    response = await get(raw, page)

    assert response.status == 429
    assert response.header("retry-after") == "42"  # whole seconds, never too few
    assert response.header("x-should-retry") == "false"
    assert response.header("x-budget") == "0"
    error = error_of(response, page)
    assert error["message"] == "Bob's budget is used up: ask Alice."
    if page.startswith("/openai/"):
        # each API calls it by its own name
        assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
        assert error["param"] == "model"
    else:
        assert error["type"] == "billing_error"
    record = await records.finished()
    assert (record.status, record.outcome) == (429, "denied")
    assert upstream.connections == 0


@each_page
async def test_denied_is_403_by_default(page: str, start_proxy: StartProxy, raw: OpenRaw) -> None:
    def deny(request: IncomingRequest) -> Identity:
        raise Denied("Not on Sundays.")

    await start_proxy(plugins=[Deciding(deny)])

    response = await get(raw, page)

    assert response.status == 403
    assert response.header("retry-after") is None
    assert error_of(response, page)["type"] == "permission_error"
    assert error_of(response, page)["message"] == "Not on Sundays."


async def test_denied_with_a_status_that_lets_in_fails_closed(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    def deny(request: IncomingRequest) -> Identity:
        raise Denied("Come in.", status=200)

    await start_proxy(plugins=[Deciding(deny)])

    assert (await get(raw, "/v1/models")).status == 503
    assert upstream.connections == 0


# -- a client that leaves while it is being decided


class Slow:
    """An authenticator that waits, and does what it was made with when it is cancelled."""

    def __init__(self, decide: Callable[[IncomingRequest], object]) -> None:
        self._decide = decide
        self.begun = asyncio.Event()
        self.answered = asyncio.Event()

    @hookimpl
    async def authenticate(self, request: IncomingRequest) -> Any:  # Any: that is what is tested
        if self.answered.is_set():
            return Identity("quick")
        self.begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.get_running_loop().create_future()
        self.answered.set()
        return self._decide(request)


@pytest.mark.parametrize(
    "decide",
    [lambda request: Identity("slow"), lambda request: None, raises, denies, presented],
)
@pytest.mark.parametrize("body", [b"", b"x" * 100])
async def test_a_client_that_leaves_meanwhile_is_abandoned_once_and_nothing_goes_upstream(
    body: bytes,
    decide: Callable[[IncomingRequest], object],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
) -> None:
    slow = Slow(decide)
    await start_proxy(plugins=[slow])
    client = await raw()
    await client.send(request_bytes("POST", "/v1/messages", body=body, token=TEST_TOKEN))
    await slow.begun.wait()

    await client.close()
    async with asyncio.timeout(1):
        record = await records.finished()
        await slow.answered.wait()
    # whatever the late answer sets off has happened before this request is through
    assert (await get(raw, "/v1/models")).status == 200
    await records.finished(2)

    assert (record.status, record.outcome) == (None, "abandoned")
    assert [each.outcome for each in records.all] == ["abandoned", "completed"]
    assert [received.path for received in upstream.requests] == ["/v1/models"]


# -- an observer that fails


class Observer:
    """Sees each record, and then does what it was made with."""

    def __init__(self, act: Callable[[RequestRecord], object]) -> None:
        self._act = act
        self.seen: list[RequestRecord] = []

    @hookimpl
    def request_finished(self, record: RequestRecord) -> Any:  # Any: that is what is tested
        self.seen.append(record)
        return self._act(record)


def breaks(record: RequestRecord) -> None:
    raise RuntimeError("disk full")


def breaks_by_cancelling(record: RequestRecord) -> None:
    raise asyncio.CancelledError


def answers_later(record: RequestRecord) -> Awaitable[object]:
    return later(None)


@pytest.mark.parametrize("act", [breaks, breaks_by_cancelling, answers_later])
async def test_an_observer_that_fails_changes_nothing(
    act: Callable[[RequestRecord], object],
    start_proxy: StartProxy,
    raw: OpenRaw,
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, broken, after = Observer(lambda _: None), Observer(act), Observer(lambda _: None)
    await start_proxy(plugins={"a": before, "m_broken": broken, "z": after})
    client = await raw()

    for path, status in (("/v1/models", 200), ("/nothing", 404), ("/v1//x", 400)):
        await client.send(request_bytes("GET", path, token=TEST_TOKEN))
        assert (await client.response()).status == status
    await client.send(request_bytes("GET", "/v1/models", token="wrong"))
    assert (await client.response()).status == 401

    await records.finished(4)
    assert before.seen == broken.seen == after.seen == records.all
    assert "'m_broken'" in caplog.text
    assert "'a'" not in caplog.text
    assert "'z'" not in caplog.text


async def test_observers_see_a_frozen_record(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    def scribble(record: RequestRecord) -> None:
        record.status = 999  # type: ignore[misc]  # that it cannot is what is tested

    await start_proxy(plugins={"a_scribbler": Observer(scribble)})

    assert (await get(raw, "/v1/models")).status == 200

    assert (await records.finished()).status == 200


# -- in place of the token plugin


async def test_another_authenticator_alone(
    start_proxy: StartProxy, raw: OpenRaw, records: Records
) -> None:
    def knows_alice(request: IncomingRequest) -> Identity | None:
        alice = Secret("alices-key")
        return Identity("alice") if alice in request.candidates() else None

    proxy = await start_proxy(plugins=[Deciding(knows_alice)], DISABLED_PLUGINS="token")

    assert (await get(raw, "/v1/models", token="alices-key")).status == 200
    assert (await get(raw, "/v1/models", token=TEST_TOKEN)).status == 401
    assert (await get(raw, "/v1/models", token=None)).status == 401
    assert (await records.finished()).principal == "alice"
    states = {info.name: info.state for info in proxy.plugins.describe()}
    assert states["token"] == "disabled"


THIRD_PARTY = """
import sys

import tornadoproxy


@tornadoproxy.hookimpl
def authenticate(request):
    if tornadoproxy.Secret("alices-key") in request.candidates():
        token = "imported" if "tornadoproxy_token" in sys.modules else "not-imported"
        return tornadoproxy.Identity(f"alice:token-{token}")
"""


async def test_with_the_token_plugin_disabled_it_is_not_even_imported(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """A third party's installed package, and the real program."""
    (tmp_path / "third_party.py").write_text(THIRD_PARTY)
    metadata = tmp_path / "third_party-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[tornadoproxy]\nthird_party = third_party\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path),
        "DISABLED_PLUGINS": "token",
        "AUTH_TOKEN": TEST_TOKEN,
        "PORT": "0",
        "UPSTREAM_BASE_URL": upstream.url,
        "UPSTREAM_API_KEY": TEST_UPSTREAM_KEY,
        "ACCESS_LOG_FORMAT": "json",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tornadoproxy"),
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        port = None
        while port is None:
            line = (await process.stderr.readline()).decode()
            assert line, "it ended before it listened"
            if line.split()[:1] == ["address"]:
                port = int(line.rpartition(":")[2])
        for token, status in (("alices-key", 200), (TEST_TOKEN, 401)):
            client = await RawConnection.open(port)
            await client.send(request_bytes("GET", "/v1/models", token=token))
            assert (await client.response()).status == status
            await client.close()
        record = json.loads(await process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        await process.communicate()

    assert process.returncode == 0
    assert record["principal"] == "alice:token-not-imported"


# -- what a request's headers are to a plugin


class Badge:
    """Reads a credential of its own, and leaves everybody to the next plugin."""

    @hookimpl
    def credential_headers(self) -> list[str]:
        return ["x-badge"]

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> None:
        logging.getLogger("badge").warning("asked about %s %s", request, request.headers)


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/v1/models", b""),
        ("/v1/files", b"%PDF"),
        ("/v1/messages", b'{"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": []}'),
        (
            "/openai/v1/chat/completions",
            b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "Hi"}]}',
        ),
    ],
)
async def test_credential_header_goes_neither_upstream_nor_to_a_log(
    target: str,
    body: bytes,
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    records: Records,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    await start_proxy(plugins=[Badge()], LOG_LEVEL="debug")
    client = await raw()
    fields = [("X-Badge", "secret-badge-1"), ("x-BADGE", "secret-badge-2"), ("X-Own", "crosses")]
    method = "POST" if body else "GET"
    await client.send(request_bytes(method, target, fields, body, token=TEST_TOKEN))
    await client.response()

    (received,) = upstream.requests
    assert received.header("x-own") == "crosses"
    assert "secret-badge" not in str(received.headers)
    assert "asked about" in caplog.text
    assert "secret-badge" not in caplog.text + str(await records.finished())


CHANGES: dict[str, Callable[[Any], object]] = {  # Any: as careless as a plugin
    "add": lambda headers: headers.add("X-Own", "changed"),
    "assign": lambda headers: headers.__setitem__("X-Own", "changed"),
    "update": lambda headers: headers.update({"X-Own": "changed"}),
    "delete": lambda headers: headers.pop("Host"),
    "clear": lambda headers: headers.clear(),
    "parse": lambda headers: headers.parse_line("X-Own: changed"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_headers_changed_by_a_plugin_are_a_failure(
    change: Callable[[Any], object],
    start_proxy: StartProxy,
    raw: OpenRaw,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plugin = First(lambda request: change(request.headers) and None)
    await start_proxy(plugins={"meddles": plugin})
    assert (await get(raw, "/v1/models")).status == 503
    assert "plugin 'meddles' failed in authenticate" in caplog.text
    assert "TypeError" in caplog.text
    assert upstream.requests == []


async def test_headers_copied_by_a_plugin_change_nothing_upstream(
    start_proxy: StartProxy, raw: OpenRaw, upstream: ScriptedUpstream
) -> None:
    def meddle(request: IncomingRequest) -> None:
        request.headers.get_list("X-Own").append("changed")
        request.headers.copy()["X-Own"] = "changed"

    await start_proxy(plugins=[First(meddle)])
    client = await raw()
    await client.send(request_bytes("GET", "/v1/models", [("X-Own", "1")], token=TEST_TOKEN))
    assert (await client.response()).status == 200
    assert [value for name, value in upstream.requests[0].headers if name == "X-Own"] == ["1"]
