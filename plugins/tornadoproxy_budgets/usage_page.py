"""``GET /api/oauth/usage``: a person's spend, as Claude Code shows it in ``/usage``.

Amounts are cents, and the period is that of the cap that is spent the most, as in the response
headers (`tornadoproxy_budgets.spend_headers`).
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tornadoproxy import Denied, Page, PageResponse
from tornadoproxy_budgets.money import NANOS_PER_CENT
from tornadoproxy_budgets.periods import reset_time
from tornadoproxy_budgets.spend_headers import THRESHOLDS

if TYPE_CHECKING:
    from tornadoproxy import PageRequest
    from tornadoproxy_budgets.engine import Engine, Fullest
    from tornadoproxy_budgets.periods import Period
    from tornadoproxy_budgets.state import Subject

PATH = "/api/oauth/usage"


class UsagePage:
    """The page."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def page(self) -> Page:
        """Return the page, for everybody with a credential."""
        return Page(PATH, self._serve)

    def _serve(self, request: PageRequest) -> PageResponse:
        identity = request.identity
        if identity is None or identity.anonymous:
            raise Denied("Usage is shown to people with a credential of their own.")
        now = time.time()
        applying = self._engine.applying(identity.principal, identity.groups, identity.allowance)
        fullest = self._engine.fullest(applying, now)
        subject: Subject = ("user", identity.principal)
        document = self._uncapped(subject, now) if fullest is None else self._capped(fullest)
        return PageResponse(json.dumps(document).encode())

    def _capped(self, fullest: Fullest) -> dict[str, Any]:  # Any: JSON
        part = fullest.spent / fullest.nanos if fullest.nanos else 1.0
        percent = _rounded(100 * part)
        resets = datetime.fromtimestamp(reset_time(fullest.cap.period, self._engine.day), UTC)
        severity = "critical" if part >= THRESHOLDS[0] else "warning"
        return {
            "extra_usage": {
                "is_enabled": True,
                "monthly_limit": _cents(fullest.nanos),
                "used_credits": _cents(fullest.spent),
                "utilization": percent,
                "currency": "USD",
            },
            "limits": [
                {
                    "kind": "spend",
                    "group": fullest.cap.period,
                    "percent": percent,
                    "resets_at": resets.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                    "severity": severity if part >= THRESHOLDS[1] else "normal",
                    "is_active": True,
                }
            ],
        }

    def _uncapped(self, subject: Subject, now: float) -> dict[str, Any]:  # Any: JSON
        def used(period: Period) -> float:
            return _cents(self._engine.spent(subject, period, now))

        def without_limit(period: Period) -> dict[str, Any]:
            return {"limit": None, "used_credits": used(period), "utilization": None}

        return {
            "extra_usage": {
                "is_enabled": True,
                "monthly_limit": None,
                "used_credits": used("monthly"),
                "utilization": None,
                "currency": "USD",
                "daily": without_limit("daily"),
                "weekly": without_limit("weekly"),
            },
            "limits": [],
        }


def _cents(nanos: int) -> float:
    return _rounded(nanos / NANOS_PER_CENT)


def _rounded(value: float) -> float:
    """Return a value with up to three decimals, as a whole number if it is one."""
    rounded = round(value, 3)
    return int(rounded) if rounded == int(rounded) else rounded
