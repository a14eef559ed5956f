"""The Admin API by the real SDK, sync and async, its responses checked against the SDK's types."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from anthropic import Anthropic, AsyncAnthropic, BaseModel
from budget_team import ADMIN

from tornadoproxy.testing import clean_environment

# Any: the clients of both kinds, and what their calls return
Work = Callable[[Any], Any]


class Sdk:
    """Clients of the Admin API.

    :param kind: ``sync`` or ``async``.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind

    async def __call__(
        self, url: str, work: Work, *, key: str = ADMIN, checked: bool = True
    ) -> Any:
        """Return what the call in `work` returns: an object, or the items of all pages.

        :param checked: whether it has a type of the SDK, which it is checked against.
        """
        with_options: dict[str, Any] = {"base_url": url, "api_key": key, "max_retries": 0}
        if self._kind == "sync":
            result = await asyncio.to_thread(_called, with_options, work)
        else:
            async with AsyncAnthropic(**with_options) as client:
                called = work(client)
                if hasattr(called, "__aiter__"):
                    result = [each async for each in called]
                else:
                    result = await called
        if checked:
            for each in result if isinstance(result, list) else [result]:
                check_shape(each)
        return result


def _called(with_options: dict[str, Any], work: Work) -> Any:
    with Anthropic(**with_options) as client:
        called = work(client)
        return list(called) if hasattr(called, "iter_pages") else called


def check_shape(found: object) -> None:
    """Check that a response has each field of its type, optional ones included, and no other kind.

    The SDK itself checks nothing: what does not fit its types is passed on as it came.
    """
    if isinstance(found, list):
        for each in found:
            check_shape(each)
    if isinstance(found, BaseModel):
        type(found).model_validate(found.model_dump(mode="json"), strict=False)
        assert found.model_fields_set >= type(found).model_fields.keys(), type(found)
        for name in type(found).model_fields:
            check_shape(getattr(found, name))


@pytest.fixture(params=["sync", "async"])
def sdk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sdk:
    """The SDK, once with each kind of client."""
    clean_environment(monkeypatch)
    return Sdk(request.param)
