"""An OpenTelemetry span for each request; inactive unless ``OTEL_TRACES`` is set.

A thread sends spans to a collector in batches, by OTLP over HTTP. `tornadoproxy_otel.spans`
describes their attributes. The plugin needs OpenTelemetry's SDK and exporter, which
``pip install 'tornadoproxy[otel]'`` installs.

The settings below are passed to OpenTelemetry from whichever source they came. OpenTelemetry reads
its other variables, such as ``OTEL_TRACES_SAMPLER`` and ``OTEL_RESOURCE_ATTRIBUTES``, from the
environment.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Inactive,
    RequestRecord,
    Secret,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    from tornadoproxy_otel.spans import Tracing

_NAME = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_VALUE = r"[\x20-\x7e]+"


def _headers(value: str) -> tuple[tuple[str, Secret], ...]:
    """Return the headers in ``name=value`` pairs, separated by commas, values percent-encoded.

    https://opentelemetry.io/docs/specs/otel/protocol/exporter/#specifying-headers-via-environment-variables
    """
    headers = []
    for pair in value.split(","):
        name, equals, encoded = (each.strip() for each in pair.partition("="))
        text = unquote(encoded)
        if not (equals and re.fullmatch(_NAME, name) and re.fullmatch(_VALUE, text)):
            raise ValueError(
                "must be name=value pairs, separated by commas, values percent-encoded"
            )
        parsers.secrets(text)  # rejects a placeholder
        headers.append((name.lower(), Secret(text.encode("ascii"))))
    return tuple(headers)


OTEL_TRACES: Setting[bool] = Setting(
    "OTEL_TRACES",
    parsers.boolean,
    default=False,
    help="send a span for each request to OTEL_EXPORTER_OTLP_ENDPOINT",
    fixed=True,
)
OTEL_EXPORTER_OTLP_ENDPOINT: Setting[parsers.BaseURL] = Setting(
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    parsers.base_url,
    default=parsers.BaseURL("http", "localhost", 4318),
    help="URL of the collector that spans are sent to by OTLP over HTTP; /v1/traces is appended",
    fixed=True,
)
OTEL_EXPORTER_OTLP_HEADERS: Setting[tuple[tuple[str, Secret], ...]] = Setting(
    "OTEL_EXPORTER_OTLP_HEADERS",
    _headers,
    default=(),
    help="headers for the collector: name=value pairs separated by commas",
    secret=True,
    fixed=True,
)
OTEL_SERVICE_NAME: Setting[str] = Setting(
    "OTEL_SERVICE_NAME",
    parsers.text,
    default="tornadoproxy",
    help="name of this proxy in traces",
    fixed=True,
)

_DECLARED = (
    OTEL_TRACES,
    OTEL_EXPORTER_OTLP_ENDPOINT,
    OTEL_EXPORTER_OTLP_HEADERS,
    OTEL_SERVICE_NAME,
)


class OpenTelemetry:
    """The plugin: it reports a span for each record."""

    def __init__(self) -> None:
        self._settings: Settings | None = None
        self._tracing: Tracing | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[object], ...]:
        return _DECLARED

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the settings.

        :raises ConfigurationError: OpenTelemetry is not installed.
        """
        if not settings[OTEL_TRACES]:
            return INACTIVE
        if self._settings is None:
            _require_library()
            self._settings = settings
        return f"a span for each request to {settings[OTEL_EXPORTER_OTLP_ENDPOINT]}"

    @hookimpl
    def startup(self) -> None:
        # imported when it is used, because the import is slow
        from tornadoproxy_otel.spans import Tracing

        assert self._settings is not None
        headers = self._settings[OTEL_EXPORTER_OTLP_HEADERS]
        self._tracing = Tracing(
            endpoint=f"{self._settings[OTEL_EXPORTER_OTLP_ENDPOINT]}/v1/traces",
            headers={name: value.reveal().decode("ascii") for name, value in headers},
            service=self._settings[OTEL_SERVICE_NAME],
        )

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        assert self._tracing is not None
        self._tracing.report(record)

    @hookimpl
    async def shutdown(self) -> None:
        """Send the spans that are held, within the time for a stop."""
        assert self._tracing is not None
        await asyncio.to_thread(self._tracing.close)


def _require_library() -> None:
    try:
        import tornadoproxy_otel.spans  # noqa: F401  # to find out whether it can be imported
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"OTEL_TRACES needs {error.name}; install it with `pip install "
            "'tornadoproxy[otel]'`, or remove OTEL_TRACES."
        ) from None
