"""Has pytest explain the failed assertions of this folder's helpers as it does those of tests."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("way_of_asking")
