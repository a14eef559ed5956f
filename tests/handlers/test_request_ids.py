"""The proxy's own request ids."""

from __future__ import annotations

import re
from itertools import islice

from tornadoproxy.handlers.gateway import request_ids


def test_request_ids_are_unique_beyond_one_block_of_entropy() -> None:
    ids = list(islice(request_ids(), 1000))
    assert len(set(ids)) == 1000
    assert all(re.fullmatch("req_[0-9a-f]{24}", each) for each in ids)


def test_request_ids_of_two_proxies_differ() -> None:
    assert not set(islice(request_ids(), 100)) & set(islice(request_ids(), 100))
