"""The limit of attempts by one client."""

from __future__ import annotations

import time

import pytest

from tornadoproxy import Attempts, Denied


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_attempts_are_limited_within_any_minute(clock: list[float]) -> None:
    attempts = Attempts("wrong keys", 3, 60.0)
    for at in (0, 20, 40):
        clock[0] = 1000.0 + at
        attempts.check("192.0.2.1")
        attempts.count("192.0.2.1")
    with pytest.raises(Denied, match=r"^Too many wrong keys .* try again in 20 s") as refused:
        attempts.check("192.0.2.1")
    assert (refused.value.status, refused.value.retry_after) == (429, 20.0)
    assert (attempts.wait("192.0.2.1"), attempts.wait("192.0.2.2")) == (20.0, 0.0)
    clock[0] = 1060.0
    attempts.check("192.0.2.1")
    attempts.count("192.0.2.1")
    assert attempts.wait("192.0.2.1") == 20.0, "those of the last minute count"
    clock[0] = 1200.0
    attempts.check("192.0.2.1")


def test_attempts_of_one_ipv6_network_count_together() -> None:
    attempts = Attempts("codes", 2, 60.0)
    for address in ("2001:db8:0:1::5", "2001:db8:0:1:a:b:c:d"):
        attempts.count(address)
    assert attempts.wait("2001:db8:0:1:ffff::") > 0
    for other in ("2001:db8:0:2::5", "192.0.2.1", "unknown", "2001:db8:0:1"):
        assert attempts.wait(other) == 0


def test_ipv4_address_in_ipv6_is_a_client_of_its_own() -> None:
    attempts = Attempts("codes", 1, 60.0)
    attempts.count("::ffff:192.0.2.1")
    assert attempts.wait("::ffff:192.0.2.2") == 0
    assert attempts.wait("192.0.2.1") > 0


def test_attempts_of_many_clients_use_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Attempts, "CLIENTS", 2)
    attempts = Attempts("polls", 1, 60.0)
    for client in ("a", "b", "a", "c"):
        attempts.count(client)
    assert [attempts.wait(client) > 0 for client in ("a", "b", "c")] == [True, False, True]
