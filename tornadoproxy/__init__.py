"""tornadoproxy stands between Claude and everyone who uses it. This is all a plugin imports.

A plugin is an object with hooks, named by an entry point::

    from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, hookimpl

    @hookimpl
    def authenticate(request: IncomingRequest) -> Identity | None: ...

The hooks are described in `tornadoproxy.hookspecs`.
"""

from tornadoproxy import parsers, tables
from tornadoproxy.authorization import UNKNOWN_MODEL, ModelRequest, Permit
from tornadoproxy.commands import Command
from tornadoproxy.database import Database, DatabaseUnavailable
from tornadoproxy.dialects import Dialect
from tornadoproxy.errors import (
    AuthenticationFailed,
    ConfigurationError,
    Denied,
    InvalidRequest,
    ProxyError,
)
from tornadoproxy.exchange import (
    Identity,
    IncomingRequest,
    ModelUsage,
    Outcome,
    RequestRecord,
    Usage,
)
from tornadoproxy.hookspecs import INACTIVE, Inactive, hookimpl
from tornadoproxy.linewriter import LineWriter
from tornadoproxy.money import usd
from tornadoproxy.pages import Page, PageAnswer, PageRequest
from tornadoproxy.parsers import BaseURL, EgressProxy
from tornadoproxy.secret import Secret
from tornadoproxy.settings import HOST, Setting, Settings
from tornadoproxy.status import Status
from tornadoproxy.version import __version__

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
    "PageAnswer",
    "PageRequest",
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
