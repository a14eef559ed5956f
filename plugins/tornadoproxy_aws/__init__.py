"""Claude on AWS: upstreams of the kinds ``bedrock``, ``mantle`` and ``aws``.

- ``bedrock``: Amazon Bedrock's InvokeModel (`tornadoproxy_aws.bedrock`).
- ``mantle``: Amazon Bedrock's endpoint that speaks the Anthropic API (`tornadoproxy_aws.native`).
- ``aws``: Claude Platform on AWS (`tornadoproxy_aws.native`).

Nothing is imported or configured unless ``UPSTREAMS_FILE`` has an entry of such a kind. The plugin
needs botocore then, which ``pip install 'tornadoproxy[aws]'`` installs.
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
    for kind in ("bedrock", "mantle", "aws"):
        for entry in entries.of_kind(kind):
            try:
                from tornadoproxy_aws.entries import upstream_of
            except ModuleNotFoundError as error:
                entry.fault(
                    "kind",
                    f"{kind!r} needs {error.name}; install it with "
                    "`pip install 'tornadoproxy[aws]'`, or remove this upstream",
                )
                yield entry.upstream(api_key=None)  # so that its other faults are found as well
            else:
                yield upstream_of(entry, entries)
