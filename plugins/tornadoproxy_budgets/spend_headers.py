"""The response headers by which Claude Code shows a person's spend. Without I/O.

They are those of Anthropic's own gateway (``GET /protocol`` of ``claude gateway``). Claude Code
warns at 75 and 95 per cent, and takes a 429 for a spent cap only with ``overage-disabled-reason``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from tornadoproxy_budgets.periods import reset_time

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tornadoproxy_budgets.engine import CapReached, Fullest

PREFIX = "Anthropic-Ratelimit-Unified-"

THRESHOLDS = (0.95, 0.75)
"""The parts of a cap at which Claude Code warns."""

MAX_SHOWN = 99
"""The highest utilization of a cap that is not spent, in hundredths."""


def of_success(fullest: Fullest, day: int) -> Mapping[str, str]:
    """Return the headers of a response under a cap.

    :param fullest: the cap that is spent the most, before this request.
    :param day: today.
    """
    part = fullest.spent / fullest.nanos
    passed = None
    if part >= THRESHOLDS[-1]:
        passed = next(each for each in THRESHOLDS if part >= each)
    shown = min(round(part * 100), MAX_SHOWN)
    return _of_success(shown, passed, reset_time(fullest.cap.period, day))


@lru_cache(1024)  # they change with every hundredth of a cap
def _of_success(hundredths: int, passed: float | None, reset: int) -> Mapping[str, str]:
    status = "allowed" if passed is None else "allowed_warning"
    headers = {
        "Status": status,
        "Overage-Status": status,
        "Representative-Claim": "overage",
        "Reset": str(reset),
        "Overage-Reset": str(reset),
        "Overage-Utilization": _number(hundredths / 100),
    }
    if passed is not None:
        headers["Overage-Surpassed-Threshold"] = _number(passed)
    return _prefixed(headers)


def of_refusal(reached: CapReached) -> Mapping[str, str]:
    """Return the headers of the refusal of a spent cap."""
    part = max(reached.spent / reached.nanos, 1) if reached.nanos else 1
    return _prefixed(
        {
            "Status": "rejected",
            "Reset": str(reached.reset),
            "Overage-Reset": str(reached.reset),
            "Overage-Utilization": _number(part),
            "Overage-Surpassed-Threshold": "1",
            "Overage-Period": reached.cap.period,
            "Overage-Disabled-Reason": "org_spend_cap_reached",
        }
    )


def _number(part: float) -> str:
    return f"{part:.2f}".rstrip("0").rstrip(".")


def _prefixed(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {PREFIX + name: value for name, value in headers.items()}
