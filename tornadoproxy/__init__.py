"""A proxy between Claude and its users. A plugin imports everything from this package.

A plugin is an object with hooks, named by an entry point::

    from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, hookimpl

    @hookimpl
    def authenticate(request: IncomingRequest) -> Identity | None: ...

The hooks are described in `tornadoproxy.plugin.hookspecs`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy.config import parsers
    from tornadoproxy.config.core_settings import (
        DATABASE_TIMEOUT,
        HOST,
        PORT,
        SHARED_LIMITS,
        SHARED_LIMITS_FAILURE,
    )
    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.upstreams import Upstream, UpstreamStatus
    from tornadoproxy.config.upstreams_file import UpstreamEntries, UpstreamEntry
    from tornadoproxy.config.urls import BaseURL, EgressProxy
    from tornadoproxy.errors import (
        AuthenticationFailed,
        ConfigurationError,
        DatabaseUnavailable,
        Denied,
        InvalidRequest,
        ProxyError,
        UpstreamError,
    )
    from tornadoproxy.plugin import admin
    from tornadoproxy.plugin.command import tables
    from tornadoproxy.plugin.command.commands import Command
    from tornadoproxy.plugin.decisions import AllowedModels, Permit
    from tornadoproxy.plugin.hookspecs import INACTIVE, Inactive, hookimpl
    from tornadoproxy.plugin.limits import Allowance, shared_counters
    from tornadoproxy.plugin.observing import Observer
    from tornadoproxy.plugin.pricing import usd
    from tornadoproxy.plugin.request import (
        Identity,
        IncomingRequest,
        ModelRequest,
        Outcome,
        RequestRecord,
    )
    from tornadoproxy.plugin.responding import ModelResponse
    from tornadoproxy.plugin.status import Status
    from tornadoproxy.plugin.web.attempts import Attempts
    from tornadoproxy.plugin.web.pages import Page, PageRequest, PageResponse
    from tornadoproxy.plugin.web.running_proxy import PluginState, RequestInFlight, RunningProxy
    from tornadoproxy.plugin.web.sign_in import SignedIn, SignInWay
    from tornadoproxy.protocol.body_fields import read_fields, write_fields
    from tornadoproxy.protocol.dialects import Dialect
    from tornadoproxy.protocol.usage import UNKNOWN_MODEL, ModelUsage, Usage
    from tornadoproxy.protocol.wire import (
        ErrorDecoder,
        OutgoingRequest,
        ResponseDecoder,
        ResponseHead,
        Wire,
    )
    from tornadoproxy.secret import Secret, SecretURL
    from tornadoproxy.server.line_writer import LineWriter
    from tornadoproxy.storage.contract import DatabaseConnection, DatabaseLocation, DatabaseStatus
    from tornadoproxy.storage.database import Database
    from tornadoproxy.storage.follower import Follower
    from tornadoproxy.storage.script import Script
    from tornadoproxy.storage.shared_counters import SharedCounters
    from tornadoproxy.upstream.cloud_wire import CloudWire, TokenWire
    from tornadoproxy.upstream.credential import RefreshedCredential
    from tornadoproxy.upstream.unsupported import Unsupported
    from tornadoproxy.version import __version__

__all__ = [
    "DATABASE_TIMEOUT",
    "HOST",
    "INACTIVE",
    "PORT",
    "SHARED_LIMITS",
    "SHARED_LIMITS_FAILURE",
    "UNKNOWN_MODEL",
    "Allowance",
    "AllowedModels",
    "Attempts",
    "AuthenticationFailed",
    "BaseURL",
    "CloudWire",
    "Command",
    "ConfigurationError",
    "Database",
    "DatabaseConnection",
    "DatabaseLocation",
    "DatabaseStatus",
    "DatabaseUnavailable",
    "Denied",
    "Dialect",
    "EgressProxy",
    "ErrorDecoder",
    "Follower",
    "Identity",
    "Inactive",
    "IncomingRequest",
    "InvalidRequest",
    "LineWriter",
    "ModelRequest",
    "ModelResponse",
    "ModelUsage",
    "Observer",
    "Outcome",
    "OutgoingRequest",
    "Page",
    "PageRequest",
    "PageResponse",
    "Permit",
    "PluginState",
    "ProxyError",
    "RefreshedCredential",
    "RequestInFlight",
    "RequestRecord",
    "ResponseDecoder",
    "ResponseHead",
    "RunningProxy",
    "Script",
    "Secret",
    "SecretURL",
    "Setting",
    "Settings",
    "SharedCounters",
    "SignInWay",
    "SignedIn",
    "Status",
    "TokenWire",
    "Unsupported",
    "Upstream",
    "UpstreamEntries",
    "UpstreamEntry",
    "UpstreamError",
    "UpstreamStatus",
    "Usage",
    "Wire",
    "__version__",
    "admin",
    "hookimpl",
    "parsers",
    "read_fields",
    "shared_counters",
    "tables",
    "usd",
    "write_fields",
]

# the module of each name, or that module itself
_HOMES = {
    "DATABASE_TIMEOUT": "config.core_settings",
    "HOST": "config.core_settings",
    "INACTIVE": "plugin.hookspecs",
    "PORT": "config.core_settings",
    "SHARED_LIMITS": "config.core_settings",
    "SHARED_LIMITS_FAILURE": "config.core_settings",
    "UNKNOWN_MODEL": "protocol.usage",
    "Allowance": "plugin.limits",
    "AllowedModels": "plugin.decisions",
    "Attempts": "plugin.web.attempts",
    "AuthenticationFailed": "errors",
    "BaseURL": "config.urls",
    "CloudWire": "upstream.cloud_wire",
    "Command": "plugin.command.commands",
    "ConfigurationError": "errors",
    "Database": "storage.database",
    "DatabaseConnection": "storage.contract",
    "DatabaseLocation": "storage.contract",
    "DatabaseStatus": "storage.contract",
    "DatabaseUnavailable": "errors",
    "Denied": "errors",
    "Dialect": "protocol.dialects",
    "EgressProxy": "config.urls",
    "ErrorDecoder": "protocol.wire",
    "Follower": "storage.follower",
    "Identity": "plugin.request",
    "Inactive": "plugin.hookspecs",
    "IncomingRequest": "plugin.request",
    "InvalidRequest": "errors",
    "LineWriter": "server.line_writer",
    "ModelRequest": "plugin.request",
    "ModelResponse": "plugin.responding",
    "ModelUsage": "protocol.usage",
    "Observer": "plugin.observing",
    "Outcome": "plugin.request",
    "OutgoingRequest": "protocol.wire",
    "Page": "plugin.web.pages",
    "PageAnswer": "plugin.web.pages",
    "PageRequest": "plugin.web.pages",
    "PageResponse": "plugin.web.pages",
    "Permit": "plugin.decisions",
    "PluginState": "plugin.web.running_proxy",
    "ProxyError": "errors",
    "RefreshedCredential": "upstream.credential",
    "RequestInFlight": "plugin.web.running_proxy",
    "RequestRecord": "plugin.request",
    "ResponseDecoder": "protocol.wire",
    "ResponseHead": "protocol.wire",
    "RunningProxy": "plugin.web.running_proxy",
    "Script": "storage.script",
    "Secret": "secret",
    "SecretURL": "secret",
    "Setting": "config.setting",
    "Settings": "config.settings",
    "SharedCounters": "storage.shared_counters",
    "SignInWay": "plugin.web.sign_in",
    "SignedIn": "plugin.web.sign_in",
    "Status": "plugin.status",
    "TokenWire": "upstream.cloud_wire",
    "Unsupported": "upstream.unsupported",
    "Upstream": "config.upstreams",
    "UpstreamEntries": "config.upstreams_file",
    "UpstreamEntry": "config.upstreams_file",
    "UpstreamError": "errors",
    "UpstreamStatus": "config.upstreams",
    "Usage": "protocol.usage",
    "Wire": "protocol.wire",
    "__version__": "version",
    "admin": "plugin.admin",
    "hookimpl": "plugin.hookspecs",
    "parsers": "config.parsers",
    "read_fields": "protocol.body_fields",
    "shared_counters": "plugin.limits",
    "tables": "plugin.command.tables",
    "usd": "plugin.pricing",
    "write_fields": "protocol.body_fields",
}

if not TYPE_CHECKING:  # with it, type checkers would take any name for a public one

    def __getattr__(name: str) -> object:
        """Load a public name when it is first used: a start needs few of them."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        is_module = home.__name__.endswith(f".{name}")
        globals()[name] = value = home if is_module else getattr(home, name)
        return value
