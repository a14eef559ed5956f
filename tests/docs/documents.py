"""The pages of the documentation, their sections and their code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str = "python") -> list[str]:
    """Return the code blocks of `language`, without the fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block_with(text: str, language: str, part: str) -> str:
    """Return the one code block of `language` that contains `part`."""
    (block,) = (block for block in blocks(text, language) if part in block)
    return block


def sections(text: str, level: int) -> dict[str, str]:
    """Return the sections of a page by their headings, each up to the next of its level."""
    parts = re.split(rf"^{'#' * level} (.+)$", text, flags=re.MULTILINE)
    return {
        heading: re.split(rf"^#{{2,{level}}} ", section, maxsplit=1, flags=re.MULTILINE)[0]
        for heading, section in zip(parts[1::2], parts[2::2], strict=True)
    }


def first_cells(text: str) -> list[str]:
    """Return the first cell of each row of the tables, if it is one name in code font."""
    return re.findall(r"^\| `(\w+)` \| ", text, re.MULTILINE)
