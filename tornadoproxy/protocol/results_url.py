"""The URL of a batch's results, rewritten so that it leads to the proxy. Pure.

A batch's ``results_url`` is absolute, so SDKs would send the proxy's token to the upstream. With
``REWRITE_RESULTS_URL`` the URL leads to the proxy: the only exception to relaying byte for byte.

Source: https://docs.anthropic.com/en/api/retrieving-message-batches
"""

from __future__ import annotations

import re

PATH_PREFIX = "/v1/messages/batches"

_RESULTS_URL = re.compile(
    rb'("results_url"\s*:\s*")https?://[^/"\\]+([^"\\]*)(?=/v1/messages/batches/)'
)


def rewrite(body: bytes, base_url: str) -> bytes:
    """Replace the origin and path prefix of each ``results_url`` in a JSON document.

    :param base_url: the proxy's URL as the client sees it: ``https://claude.example/prefix``.
    """
    return _RESULTS_URL.sub(lambda match: match[1] + base_url.encode("latin-1"), body)
