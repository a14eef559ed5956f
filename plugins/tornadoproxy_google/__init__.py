"""Claude on Google: upstreams of the kinds ``vertex`` and ``google_cloud``.

- ``vertex``: Claude on Vertex AI (`tornadoproxy_google.vertex`).
- ``google_cloud``: Claude on Google Cloud, managed by Anthropic (`tornadoproxy_google.gateway`).

Nothing is imported or configured unless ``UPSTREAMS_FILE`` has an entry of such a kind. The plugin
needs google-auth then, which ``pip install 'tornadoproxy[google]'`` installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy import INACTIVE, Inactive, Settings, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tornadoproxy import Upstream, UpstreamEntries


@hookimpl
def configure(settings: Settings) -> Inactive | None:
    return None if settings.is_set("UPSTREAMS_FILE") else INACTIVE


@hookimpl
def upstreams(entries: UpstreamEntries) -> Iterator[Upstream]:
    for kind in ("vertex", "google_cloud"):
        for entry in entries.of_kind(kind):
            from tornadoproxy_google.entries import upstream_of

            yield upstream_of(entry)
