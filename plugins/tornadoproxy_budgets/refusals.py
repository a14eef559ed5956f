"""The errors of requests that the budgets refuse."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tornadoproxy import Denied, Usage, usd
from tornadoproxy_budgets import spend_headers
from tornadoproxy_budgets.periods import day_text, minute_text

if TYPE_CHECKING:
    from tornadoproxy import IncomingRequest, ModelRequest
    from tornadoproxy_budgets.engine import CapReached

HELD_RETRY = 5.0  # seconds; requests that have reserved the rest of a cap take some time


def cap_reached(reached: CapReached, message: str | None) -> Denied:
    """Return the error for a cap that leaves nothing to spend.

    :param message: ends the error, if the cap is spent; see ``BUDGETS_MESSAGE``.
    """
    cap = reached.cap
    amount = f"${usd(reached.nanos)}"
    limit = f"{cap.period}; resets {minute_text(reached.reset)}"
    scope = f" for {cap.scope}" if cap.scope.shared else ""
    if reached.held:
        return Denied(
            f"spend limit reached for now ({limit}): ${usd(reached.spent)} of {amount}{scope} is "
            "spent, and requests in flight have reserved the rest. Try again when one of them has "
            "ended.",
            status=429,
            error_type="billing_error",
            retry_after=HELD_RETRY,
            headers={"X-Should-Retry": "true"},
        )
    # Claude Code replaces a date in exactly these words by local time; a cap of nothing has none
    resets = f" · resets {day_text(reached.reset)}" if reached.nanos else ""
    spent = f"${usd(reached.spent)} of {amount}{scope} is spent"
    return Denied(
        f"spend limit reached{resets} · {spent} ({limit}).{f' {message}' if message else ''}",
        status=429,
        error_type="billing_error",
        retry_after=max(reached.reset - time.time(), 1),
        headers={"X-Should-Retry": "false", **spend_headers.of_refusal(reached)},
    )


def price_unknown(asked: ModelRequest) -> Denied:
    """Return the error for a request under a cap whose cost cannot be estimated."""
    if asked.model is None:
        return Denied("model: missing; name one, because a spend limit applies to you.", status=400)
    token = Usage(input_tokens=1)
    model = next(each for each in asked.models if asked.price(each, token) is None)
    return Denied(
        f"A spend limit applies to you, and the price of the model {model[:100]!r} is unknown. Use "
        "another model, or have its price added to the proxy's PRICES_FILE.",
        status=503,
        headers={"X-Should-Retry": "false"},
    )


def uncounted(request: IncomingRequest) -> Denied:
    """Return the error for a request under a cap whose cost no response reports."""
    return Denied(
        f"A spend limit applies to you, and the cost of {request.method} {request.path[:200]} "
        "cannot be counted. Use /v1/messages, or ask for the limit to be removed."
    )


def unknown(retry_after: float) -> Denied:
    """Return the error while the database has been unusable for too long."""
    return Denied(
        "The budgets are temporarily unavailable, so nothing may be spent. Try again later; the "
        "proxy's log says what is wrong.",
        status=503,
        retry_after=retry_after,
    )
