"""Requests as templates show them: like those of the resource ``requests`` of the Admin API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import admin

if TYPE_CHECKING:
    from tornadoproxy import RequestInFlight, RequestRecord


def ended(record: RequestRecord) -> admin.Document:
    """Return a request that has ended."""
    return {
        "id": record.request_id,
        "created_at": admin.timestamp(record.time),
        "principal": record.principal,
        "model": record.model or record.requested_model,
        "status": record.status,
        "outcome": record.outcome.value,
        "input_tokens": record.usage.input_tokens,
        "output_tokens": record.usage.output_tokens,
        "cost": None if record.cost is None else record.cost / 10_000_000,
        "duration": record.duration,
    }


def in_flight(request: RequestInFlight) -> admin.Document:
    """Return a request that has not ended."""
    return {
        "created_at": admin.timestamp(request.time),
        "principal": request.principal,
        "model": request.model or request.requested_model,
        "status": request.status,
        "upstream": request.upstream,
        "output_tokens": request.usage.output_tokens,
        "duration": request.duration,
    }
