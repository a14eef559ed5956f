"""Properties that hold of any input, tried on the same examples in each run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def holds_of(
    *strategies: st.SearchStrategy[Any],
    examples: int = 40,
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
