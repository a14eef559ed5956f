"""The ids of the proxy's own."""

from __future__ import annotations

import re
from itertools import islice

from tornadoproxy.handlers.gateway import request_ids


def test_each_is_new_also_when_the_system_is_asked_again() -> None:
    ids = list(islice(request_ids(), 1000))
    assert len(set(ids)) == 1000
    assert all(re.fullmatch("req_[0-9a-f]{24}", each) for each in ids)


def test_two_proxies_have_different_ones() -> None:
    assert not set(islice(request_ids(), 100)) & set(islice(request_ids(), 100))
