"""A proxy between Claude and its users. A plugin imports everything from this package.

A plugin is an object with hooks, named by an entry point::

    from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, hookimpl

    @hookimpl
    def authenticate(request: IncomingRequest) -> Identity | None: ...

The hooks are described in `tornadoproxy.plugin.hookspecs`.
"""

from tornadoproxy.config import parsers
from tornadoproxy.config.core_settings import HOST
from tornadoproxy.config.setting import Setting
from tornadoproxy.config.settings import Settings
from tornadoproxy.config.urls import BaseURL, EgressProxy
from tornadoproxy.errors import (
    AuthenticationFailed,
    ConfigurationError,
    DatabaseUnavailable,
    Denied,
    InvalidRequest,
    ProxyError,
)
from tornadoproxy.plugin import tables
from tornadoproxy.plugin.commands import Command
from tornadoproxy.plugin.decisions import Permit
from tornadoproxy.plugin.hookspecs import INACTIVE, Inactive, Status, hookimpl
from tornadoproxy.plugin.pages import Page, PageRequest, PageResponse
from tornadoproxy.plugin.pricing import usd
from tornadoproxy.plugin.request import (
    Identity,
    IncomingRequest,
    ModelRequest,
    Outcome,
    RequestRecord,
)
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.request_fields import UNKNOWN_MODEL
from tornadoproxy.protocol.usage import ModelUsage, Usage
from tornadoproxy.secret import Secret
from tornadoproxy.server.line_writer import LineWriter
from tornadoproxy.storage.database import Database
from tornadoproxy.version import __version__

PageAnswer = PageResponse
"""The earlier name of `PageResponse`, until 0.2."""

__all__ = [
    "HOST",
    "INACTIVE",
    "UNKNOWN_MODEL",
    "AuthenticationFailed",
    "BaseURL",
    "Command",
    "ConfigurationError",
    "Database",
    "DatabaseUnavailable",
    "Denied",
    "Dialect",
    "EgressProxy",
    "Identity",
    "Inactive",
    "IncomingRequest",
    "InvalidRequest",
    "LineWriter",
    "ModelRequest",
    "ModelUsage",
    "Outcome",
    "Page",
    "PageRequest",
    "PageResponse",
    "Permit",
    "ProxyError",
    "RequestRecord",
    "Secret",
    "Setting",
    "Settings",
    "Status",
    "Usage",
    "__version__",
    "hookimpl",
    "parsers",
    "tables",
    "usd",
]
