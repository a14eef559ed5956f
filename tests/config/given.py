"""Sources of settings, as the tests of this room make them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tornadoproxy import ConfigurationError, Secret, Setting, parsers
from tornadoproxy.config import env_file
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.config.sources import Sources

CANARY = "sk-canary-8f3b1d"

TOKENS: Setting[tuple[Secret, ...]] = Setting(
    "AUTH_TOKEN", parsers.secrets, default=(), help="tokens, as a plugin declares them", secret=True
)


def sources(
    directory: Path,
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | bytes | None = None,
) -> Sources:
    """Return the sources of a process started in `directory`, with `file` as its ``.env``."""
    path = directory / ".env"
    if file is not None:
        path.write_bytes(file.encode() if isinstance(file, str) else file)
    return Sources(flags or {}, environment or {}, env_file.read(str(path), required=False))


def faults_of(read: Sources, *declared: Setting[Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        read.read(declared or CORE_SETTINGS)
    return raised.value.faults
