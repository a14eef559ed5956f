"""A hook of the build: packages describe the project by its README without pictures.

A package holds none of them, and its description has no address to load them from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = r"^!\[[^]]*\]\([^)]*\)\n\n"


class Description(MetadataHookInterface):
    """Makes the field ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:  # Any: TOML
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = re.sub(_PICTURE, "", text, flags=re.MULTILINE)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
