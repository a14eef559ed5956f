"""Metrics for Prometheus at ``/metrics``; inactive unless ``METRICS`` is set.

The metrics are described in `tornadoproxy_metrics.figures`. The plugin needs prometheus-client,
which ``pip install 'tornadoproxy[metrics]'`` installs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tornadoproxy import (
    INACTIVE,
    ConfigurationError,
    Inactive,
    Page,
    PageRequest,
    PageResponse,
    RequestRecord,
    Setting,
    Settings,
    Status,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy_metrics.figures import Figures

_CLIENTS_PATHS = ("/v1/", "/openai/")
_PATH = r"(/[A-Za-z0-9._~-]+)+"


def _path(value: str) -> str:
    """Return the path of the page, which must not hide a path of the APIs."""
    if not re.fullmatch(_PATH, value) or value.startswith(_CLIENTS_PATHS):
        raise ValueError(
            f"must be a path such as /metrics, not below /v1 or /openai, not {value!r}"
        )
    return value


METRICS: Setting[bool] = Setting(
    "METRICS",
    parsers.boolean,
    default=False,
    help="serve a page with figures for Prometheus",
    fixed=True,
)
METRICS_PATH: Setting[str] = Setting(
    "METRICS_PATH",
    _path,
    default="/metrics",
    help="path of the page for Prometheus",
    fixed=True,
)
METRICS_PUBLIC: Setting[bool] = Setting(
    "METRICS_PUBLIC",
    parsers.boolean,
    default=False,
    help="serve the page for Prometheus without a credential, to everyone who reaches the proxy",
    fixed=True,
)


class PrometheusMetrics:
    """The plugin: it counts records and serves the page."""

    def __init__(self) -> None:
        self._figures: Figures | None = None
        self._path = METRICS_PATH.default
        self._public = METRICS_PUBLIC.default

    @hookimpl
    def declare_settings(self) -> tuple[Setting[bool] | Setting[str], ...]:
        return METRICS, METRICS_PATH, METRICS_PUBLIC

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the path and the access to the page.

        :raises ConfigurationError: prometheus-client is not installed.
        """
        if not settings[METRICS]:
            return INACTIVE
        path, public = settings[METRICS_PATH], settings[METRICS_PUBLIC]
        if self._figures is None:
            self._figures = _figures(path)
            self._path, self._public = path, public
        clients = "EVERYBODY who reaches it (METRICS_PUBLIC)" if public else "all clients"
        return f"metrics for Prometheus at {path}, for {clients}"

    @hookimpl
    def pages(self) -> tuple[Page, ...]:
        return (Page(re.escape(self._path), self._serve, public=self._public),)

    @hookimpl
    def startup(self, status: Callable[[], Status]) -> None:
        assert self._figures is not None
        self._figures.watch(status)

    @hookimpl
    def request_finished(self, record: RequestRecord) -> None:
        assert self._figures is not None
        self._figures.count(record)

    def _serve(self, request: PageRequest) -> PageResponse:
        assert self._figures is not None
        body, content_type = self._figures.exposition(request.incoming.headers.get("Accept", ""))
        return PageResponse(body, content_type)


def _figures(path: str) -> Figures:
    from importlib.util import find_spec  # most starts serve no such page

    if find_spec("prometheus_client") is None:
        raise ConfigurationError(
            "METRICS needs prometheus-client; install it with `pip install "
            "'tornadoproxy[metrics]'`, or remove METRICS."
        )
    # imported when it is used, because the import is slow
    from tornadoproxy_metrics.figures import Figures

    return Figures(path)
