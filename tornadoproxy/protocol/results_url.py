"""Makes the results of a batch reachable through the proxy. Pure.

A batch's ``results_url`` is absolute, so SDKs would fetch it past the proxy, with the proxy's
token. With ``REWRITE_RESULTS_URL`` it leads to the proxy: the one exception to relaying
byte for byte.

Source: https://docs.anthropic.com/en/api/retrieving-message-batches
"""

from __future__ import annotations

import re

PATH_PREFIX = "/v1/messages/batches"

_RESULTS_URL = re.compile(
    rb'("results_url"\s*:\s*")https?://[^/"\\]+([^"\\]*)(?=/v1/messages/batches/)'
)


def rewrite(body: bytes, base_url: str) -> bytes:
    """`body`, a JSON document, with the origin and path prefix of each ``results_url`` replaced.

    :param base_url: the proxy's, as the client sees it: ``https://claude.example/prefix``.
    """
    return _RESULTS_URL.sub(lambda match: match[1] + base_url.encode("latin-1"), body)
