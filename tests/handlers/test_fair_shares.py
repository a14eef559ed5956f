"""The shares of each principal, without a server: of places, of the thread, and of memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tornadoproxy.errors import BodyTooLarge, Overloaded
from tornadoproxy.handlers.admission import Admission, FairThread, Turn
from tornadoproxy.handlers.body_budget import UNCHARGED_BODY, BodyBudget, HeldBody, Holding

# -- places in flight, and the thread that parses bodies


async def test_thread_works_for_principals_in_turn() -> None:
    thread, go_on, done = FairThread(), threading.Event(), list[int]()

    def work(number: int) -> int:
        assert go_on.wait(10)
        done.append(number)
        return number

    tasks = [
        asyncio.create_task(thread.run(principal, work, number))
        for number, principal in enumerate(("greedy",) * 4 + ("other",))
    ]
    await asyncio.sleep(0)
    for cancelled in (tasks[0], tasks[1]):  # one at work, one queued
        cancelled.cancel()
    go_on.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[2:] == [2, 3, 4]
    assert done == [0, 4, 2, 3]
    assert await thread.run("greedy", work, 5) == 5
    thread.close()


async def test_principals_take_turns_first_come_first_served() -> None:
    admission = Admission(1, max_waiting=9, timeout=100)
    assert admission.enter("x")
    names = ["a1", "a2", "a3", "a4", "b1", "c1", "b2", "a5"]
    queued = {name: admission.queue(name[0]) for name in names}
    order = ["x"]
    while queued:
        admission.leave(order[-1][0])
        (name,) = (name for name, turn in queued.items() if turn.has_place)
        del queued[name]
        order.append(name)
    assert order == ["x", "a1", "b1", "c1", "a2", "b2", "a3", "a4", "a5"]


async def test_principal_with_fewest_places_is_first() -> None:
    admission = Admission(3, max_waiting=9, timeout=100)
    for name in "aab":
        assert admission.enter(name)
    queued = {name: admission.queue(name[0]) for name in ("a2", "a3", "b1", "c0")}
    for leaving, served in (("a", "c0"), ("a", "a2"), ("b", "b1")):
        admission.leave(leaving)
        assert queued[served].has_place
        assert sum(turn.has_place for turn in queued.values()) == 1
        del queued[served]


async def test_newest_of_longest_queue_gives_way() -> None:
    """A principal that fills the queue does not keep out the others."""
    admission = Admission(1, max_waiting=4, timeout=100)
    assert admission.enter("x")
    queued = {name: admission.queue(name[0]) for name in ("a1", "a2", "a3", "a4")}
    for name, gives_way in [
        *(("b1", "a4"), ("b2", "a3"), ("b3", "b3"), ("a5", "a5"), ("c1", "a2")),
        # with one each, or one more than another, none gives way to a newcomer
        *(("d1", "b2"), ("e1", "e1")),
    ]:
        if name == gives_way:
            with pytest.raises(Overloaded):
                admission.queue(name[0])
        else:
            queued[name] = admission.queue(name[0])
            assert queued.pop(gives_way).refused
    assert list(queued) == ["a1", "b1", "c1", "d1"]
    assert not any(turn.refused or turn.has_place for turn in queued.values())


async def test_timeout_of_0_disables_queueing() -> None:
    admission = Admission(1, max_waiting=3, timeout=0)
    assert admission.enter("a")
    with pytest.raises(Overloaded):
        admission.queue("b")


async def test_place_of_withdrawn_turn_goes_to_next() -> None:
    admission = Admission(1, max_waiting=3, timeout=100)
    assert admission.enter("a")
    leaving, staying = admission.queue("a"), admission.queue("a")
    admission.leave("a")
    assert leaving.has_place
    admission.withdraw(leaving)
    assert staying.has_place
    admission.withdraw(staying)
    admission.withdraw(staying)
    assert admission.enter("a")
    assert not admission.enter("a")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["enter", "leave", "withdraw"]), st.integers(0, 9)), max_size=60
    )
)
def test_admission_never_exceeds_limit_nor_leaves_place_free(steps: list[tuple[str, int]]) -> None:
    """Requests enter or queue, leave and withdraw in any order; at the end all have ended."""

    async def run() -> None:
        admission = Admission(2, max_waiting=4, timeout=100)
        served: list[str] = []
        turns: list[Turn] = []
        for step, number in steps:
            principal = "abc"[number % 3]
            if step == "enter" and admission.enter(principal):
                served.append(principal)
            elif step == "enter":
                with contextlib.suppress(Overloaded):
                    turns.append(admission.queue(principal))
            elif step == "leave" and served:
                admission.leave(served.pop(number % len(served)))
            elif step == "withdraw" and turns:
                admission.withdraw(turns.pop(number % len(turns)))
            with_place = len(served) + sum(turn.has_place for turn in turns)
            waiting = [turn for turn in turns if not turn.has_place and not turn.refused]
            assert with_place <= 2
            assert len(waiting) == admission.waiting <= 4
            assert with_place == 2 or not waiting
        for turn in turns:
            admission.withdraw(turn)
        for principal in served:
            admission.leave(principal)
        assert [admission.enter("a") for _ in range(3)] == [True, True, False]

    asyncio.run(run())


# -- memory for bodies that are held

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


@pytest.mark.parametrize(
    ("pieces", "charged"),
    [([UNCHARGED_BODY], 0), ([UNCHARGED_BODY + 1], UNCHARGED_BODY + 1), ([1, 1], 2)],
)
def test_only_small_body_in_one_piece_is_uncharged(pieces: list[int], charged: int) -> None:
    budget = BodyBudget(1_000_000)
    body = HeldBody(budget, "a")
    for number, size in enumerate(pieces, 1):
        body.add(b"x" * size, is_last=number == len(pieces))
    assert budget.used == charged
    assert body.take() == b"x" * sum(pieces)
    for _ in range(2):
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
