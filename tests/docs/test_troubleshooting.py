"""The errors that docs/troubleshooting.md quotes."""

from __future__ import annotations
