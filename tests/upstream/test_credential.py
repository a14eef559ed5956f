"""A credential that ends: loaded once for all who wait, ahead of its end, and after a refusal."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from tornadoproxy.errors import UpstreamError, UpstreamTimeout
from tornadoproxy.upstream import credential
from tornadoproxy.upstream.credential import RefreshedCredential


class Source:
    """Loads the credentials 1, 2 and so on; each load waits until it may go on."""

    def __init__(self, *lifetimes: float | Exception | None) -> None:
        self.lifetimes = list(lifetimes)
        self.loads = 0
        self.threads: set[int] = set()
        self.may_load = threading.Event()
        self.may_load.set()
        self.credential = RefreshedCredential("The credential", self.load)

    def load(self) -> tuple[int, float | None]:
        self.loads += 1
        number = self.loads
        self.threads.add(threading.get_ident())
        assert self.may_load.wait(10)
        lifetime = self.lifetimes[number - 1]
        if isinstance(lifetime, Exception):
            raise lifetime
        return number, None if lifetime is None else time.time() + lifetime


async def test_all_who_wait_get_one_load_in_a_thread() -> None:
    source = Source(None)
    source.may_load.clear()
    waiting = [asyncio.ensure_future(source.credential.get()) for _ in range(9)]
    await asyncio.sleep(0)
    assert source.credential.current() is None
    source.may_load.set()
    assert await asyncio.gather(*waiting) == [1] * 9
    assert source.credential.current() == 1
    assert source.loads == 1
    assert threading.get_ident() not in source.threads


async def test_credential_is_loaded_ahead_of_its_end_while_requests_take_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(credential, "NEW", 0)
    source = Source(credential.AHEAD - 1, ValueError(), 3600.0)
    assert await source.credential.get() == 1
    source.may_load.clear()
    assert [source.credential.current() for _ in range(9)] == [1] * 9
    assert source.loads == 2
    source.may_load.set()
    while source.credential.current() == 1:  # the load that failed is followed by another one
        await asyncio.sleep(0)
    assert source.credential.current() == 3
    assert source.loads == 3


async def test_ended_credential_is_awaited() -> None:
    source = Source(-1.0, 3600.0)
    await source.credential.get()
    assert source.credential.current() is None
    assert await source.credential.get() == 2


async def test_load_that_fails_says_whose_and_shows_no_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Source(ValueError("hidden-word"), None)
    with pytest.raises(UpstreamError, match=r"^The credential could not be loaded \(ValueError\)"):
        await source.credential.get()
    assert "hidden-word" not in caplog.text
    assert await source.credential.get() == 2


async def test_load_that_takes_too_long_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential, "LOAD_TIMEOUT", 0)
    source = Source(None)
    source.may_load.clear()
    with pytest.raises(UpstreamTimeout, match="in time"):
        await source.credential.get()
    source.may_load.set()


async def test_refused_credential_is_loaded_once_for_all_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Source(3600.0, 3600.0)
    await source.credential.get()
    monkeypatch.setattr(credential, "NEW", 0)
    assert await asyncio.gather(*(source.credential.renew() for _ in range(9))) == [True] * 9
    assert not await source.credential.renew(), "a moment ago"
    monkeypatch.undo()
    assert await source.credential.renew(), "it was sent with the credential before"
    assert (source.loads, source.credential.current()) == (2, 2)
