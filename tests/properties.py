"""Properties that hold of any input, tried on the same examples in each run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NUMBERS = [2**63, 10**400, -0.0, 0.5, float("inf"), float("nan")]
any_text = st.text(st.characters(), max_size=8)  # with halves of surrogate pairs


def junk_of(keys: Iterable[str], words: Iterable[str]) -> st.SearchStrategy[Any]:  # Any: JSON
    """Return JSON values of any kind, whose objects have some of `keys`, and strings of `words`."""
    chosen = st.sampled_from([*words, *NUMBERS])
    return st.recursive(
        st.none() | st.booleans() | st.integers() | any_text | chosen,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(any_text | st.sampled_from([*keys]), inner, max_size=5)
        ),
        max_leaves=15,
    )


@st.composite
def spoiled(
    draw: st.DrawFn, documents: st.SearchStrategy[Any], junk: st.SearchStrategy[Any]
) -> dict[str, Any]:  # Any: JSON
    """Return a JSON object, one of `documents`, with junk in some of its places."""
    document: dict[str, Any] = json.loads(json.dumps(draw(documents)))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(_places(document))[1:]))
        holder: Any = document
        for step in way:
            holder = holder[step]
        holder[last] = draw(junk)
    return document


def not_json(name: str) -> None:
    """Refuse a constant that `json.loads` takes for a number, such as NaN."""
    raise AssertionError(f"{name} is not JSON")


def _places(document: object, path: tuple[object, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from _places(value, (*path, key))


def holds_of(
    *strategies: st.SearchStrategy[Any],
    examples: int = 20,
    known: Iterable[tuple[Any, ...]] = (),  # Any: whatever the property takes
) -> Callable[[Callable[..., None]], Callable[[int], None]]:
    """Make a test of a property: it tries `examples`, and fifteen times as many under ``-m long``.

    :param known: examples that once failed, which are tried first.
    """

    def decorate(check: Callable[..., None]) -> Callable[[int], None]:
        def test(factor: int) -> None:
            for each in known:
                check(*each)
            same_each_time = settings(
                derandomize=True,
                database=None,
                deadline=None,
                max_examples=examples * factor,
                suppress_health_check=list(HealthCheck),
            )
            same_each_time(given(*strategies)(check))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        long = pytest.param(15, marks=[pytest.mark.long, pytest.mark.timeout(240)])
        return pytest.mark.parametrize("factor", [1, long])(test)

    return decorate
