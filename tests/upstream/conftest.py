"""Clients of the upstream without a proxy around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from tornado.ioloop import IOLoop

from tornadoproxy import Setting, Settings
from tornadoproxy.upstream.client import UpstreamClient

MakeClient = Callable[..., UpstreamClient]
"""A function that makes a client with these values of settings."""


@pytest.fixture
def make_client(io_loop: IOLoop) -> Iterator[MakeClient]:
    made: list[UpstreamClient] = []

    def make(values: Mapping[Setting[Any], object] = {}) -> UpstreamClient:
        settings = Settings.defaults().replace(values)
        made.append(UpstreamClient(force_instance=True, settings=settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def client(io_loop: IOLoop, make_client: MakeClient) -> UpstreamClient:
    """A client with the default settings."""

    async def make() -> UpstreamClient:
        return make_client()

    made: UpstreamClient = io_loop.run_sync(make)
    return made
