"""The budget of request bodies held in memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tornadoproxy.errors import BodyTooLarge, Overloaded
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY, BodyBudget, HeldBody, Holding

CAPACITY = 1600


@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("abc"), st.integers(0, 900)), max_size=60)
)
def test_budget_stays_within_room_and_leaves_some(steps: list[tuple[int, str, int]]) -> None:
    budget = BodyBudget(CAPACITY)
    holdings: dict[tuple[int, str], Holding] = {}
    for number, principal, size in steps:
        holding = holdings.setdefault((number, principal), Holding(budget, principal))
        before = holding.size
        try:
            holding.resize(size)
        except Overloaded:
            assert size > before == holding.size
            own = sum(each.size for (_, name), each in holdings.items() if name == principal)
            assert own + size - before > CAPACITY - budget.used - (size - before)
        assert budget.used == sum(each.size for each in holdings.values())
    # a newcomer may hold half of what is left
    newcomer = HeldBody(budget, "newcomer")
    free = CAPACITY - budget.used
    assert free > 0
    newcomer.add(b"x" * (free // 2))
    with pytest.raises((BodyTooLarge, Overloaded)):
        newcomer.add(b"xx")
    for each in (*holdings.values(), newcomer):
        each.resize(0)
    assert budget.used == 0
    HeldBody(budget, "any").add(b"x" * (CAPACITY // 2))


def test_oldest_unauthenticated_holding_gives_way() -> None:
    budget = BodyBudget(CAPACITY)
    gave_way: list[str] = []

    def unknown(name: str) -> HeldBody:
        return HeldBody(budget, None, lambda: gave_way.append(name))

    first, second, third = map(unknown, ("first", "second", "third"))
    for each in (first, second, first):
        each.add(b"x" * 30)
    third.add(b"x" * 10)
    assert (gave_way, budget.used) == ([], 100)
    third.add(b"x")
    assert (gave_way, budget.used) == (["first"], 41)
    second.release()
    third.add(b"x" * 100)
    assert (gave_way, budget.used) == (["first", "third"], 0)


def test_held_body_is_charged_until_released() -> None:
    budget = BodyBudget(CAPACITY)
    body = HeldBody(budget, "a")
    for piece in (b"to", b"ge", b"ther"):
        body.add(piece)
    assert (body.take(), budget.used) == (b"together", 8)
    for _ in range(2):
        body.release()
    assert budget.used == 0


@pytest.mark.parametrize(
    ("pieces", "charged"),
    [
        ([UNCHARGED_BODY], 0),
        ([UNCHARGED_BODY + 1], UNCHARGED_BODY + 1),
        ([1, 1], 2),
    ],
)
def test_only_small_body_in_one_piece_is_uncharged(pieces: list[int], charged: int) -> None:
    budget = BodyBudget(1_000_000)
    body = HeldBody(budget, "a")
    for number, size in enumerate(pieces, 1):
        body.add(b"x" * size, is_last=number == len(pieces))
    assert budget.used == charged
    assert body.take() == b"x" * sum(pieces)
    body.release()
    assert budget.used == 0


def test_held_body_in_small_pieces_takes_what_is_charged() -> None:
    body = HeldBody(BodyBudget(1_000_000), "a")
    tracemalloc.start()
    try:
        for number in range(10_000):
            body.add(b"%02d" % (number % 100))
        assert tracemalloc.get_traced_memory()[0] < 1.5 * body.size
    finally:
        tracemalloc.stop()
    assert body.take() == b"".join(b"%02d" % number for number in range(100)) * 100
