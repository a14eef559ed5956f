"""Claude in Microsoft Foundry: upstreams of the kind ``foundry``.

With an API key it needs nothing more. With Microsoft Entra ID it needs azure-identity, which
``pip install 'tornadoproxy[azure]'`` installs.
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
    for entry in entries.of_kind("foundry"):
        from tornadoproxy_foundry.entries import upstream_of

        yield upstream_of(entry)
