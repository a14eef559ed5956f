"""Plugins made of functions, and what tests give to plugins and ask of them."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from tornado.httputil import HTTPHeaders

from tornadoproxy import Dialect, Identity, IncomingRequest, Settings, hookimpl
from tornadoproxy.config.core_settings import PLUGIN_TIMEOUT
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.testing import request_record

CANARY = "sk-canary-0123456789"
REQUEST = IncomingRequest(
    "POST", "/v1/messages", HTTPHeaders({"X-Api-Key": CANARY}), "127.0.0.1", Dialect.ANTHROPIC
)
RECORD = request_record()

Awaited: TypeAlias = Literal[False, True, "future"]


class Plugin:
    """A plugin whose hooks are these functions."""

    def __init__(self, **hooks: Any) -> None:  # Any: each hook has a signature of its own
        for name, function in hooks.items():
            setattr(self, name, hookimpl(function))


class Authenticator:
    """A plugin that blocks for `seconds`, then returns `result` or raises it if it is an error.

    :param awaited: whether it returns a coroutine, or a future.
    """

    def __init__(
        self, result: object = None, *, awaited: Awaited = False, seconds: float = 0
    ) -> None:
        self.asked = 0
        self.result = result
        self.awaited = awaited
        self.seconds = seconds

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Any:  # Any: what is tested
        self.asked += 1
        if self.awaited == "future":
            return asyncio.ensure_future(self._later())
        return self._later() if self.awaited else self._now()

    def _now(self) -> object:
        time.sleep(self.seconds)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    async def _later(self) -> object:
        await asyncio.sleep(0)
        return self._now()


@dataclass
class Point:
    """An entry point that loads an object at hand."""

    name: str
    plugin: object
    dist: Any = None
    value: str = "at:hand"

    def load(self) -> object:
        if isinstance(self.plugin, BaseException):
            raise self.plugin
        return self.plugin


def points_of(**named: object) -> Any:
    return [Point(name, plugin) for name, plugin in named.items()]


def plugins_of(**named: object) -> Plugins:
    return Plugins.load(entry_points=points_of(**named))


def with_timeout(plugins: Plugins, seconds: float) -> Plugins:
    plugins.configure(Settings.defaults().replace({PLUGIN_TIMEOUT: seconds}))
    return plugins


async def ask(plugins: Plugins) -> Identity:
    """Return who the plugins say `REQUEST` comes from."""
    result = plugins.authenticate(REQUEST)
    return result if isinstance(result, Identity) else await result
