"""The text in the input of a custom tool, decoded while it streams.

OpenAI's custom tools take text; the upstream's take an object. So the model writes
``{"input": "the text"}``, which comes in fragments that are cut anywhere: within an escape, or
between the two escapes of one character.
"""

from __future__ import annotations

import json
import re

INPUT = "input"
"""The property that holds the text."""

_MARK = re.compile(r'["{}\[\]:,]')
_WHOLE = re.compile(r'[^"\\]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\]*)*')
_BEGUN = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_OPENS = frozenset("{[")
_CLOSES = frozenset("}]")

_decode = json.JSONDecoder(strict=False).decode


class InputText:
    """Decodes the text of a custom tool's input out of JSON that comes in fragments.

    JSON of another form has no text; invalid JSON has the text up to where it becomes invalid.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._key: str | None = None  # of the value that follows, in the outermost object
        self._in_string = False
        self._string = ""  # of a key: its beginning; of the text: half of a character
        self._rest = ""  # the beginning of an escape
        self._is_invalid = False
        self._is_within = False  # the text, with nothing held back

    def feed(self, fragment: str) -> str:
        """Return the text that a fragment of the JSON adds."""
        if self._is_within and '"' not in fragment and "\\" not in fragment:
            return fragment  # as most are
        if self._is_invalid:
            return ""
        written, at, found = self._rest + fragment, 0, ""
        while at < len(written):
            if self._in_string:
                at, piece = self._take_string(written, at)
                found += piece
                if self._in_string:
                    break
            else:
                mark = _MARK.search(written, at)
                if mark is None:
                    break
                at = mark.end()
                self._take_mark(mark[0])
        self._rest = written[at:] if self._in_string else ""
        self._is_invalid = bool(self._rest) and not _BEGUN.fullmatch(self._rest)
        self._is_within = self._in_string and self._is_text and not (self._rest or self._string)
        return found

    @property
    def _is_text(self) -> bool:
        return self._depth == 1 and self._key == INPUT

    def _take_mark(self, mark: str) -> None:
        if mark == '"':
            self._in_string = True
            self._string = ""
        elif mark in _OPENS:
            self._depth += 1
        elif mark in _CLOSES:
            self._depth -= 1
        elif mark == ":" and self._depth == 1:
            self._key = self._string
        elif mark == "," and self._depth == 1:
            self._key = None

    def _take_string(self, written: str, start: int) -> tuple[int, str]:
        """Take a string as far as it is whole; return where that ends, and the text it adds.

        Half of a character at the end of the text is held back: its other half may follow.
        """
        match = _WHOLE.match(written, start)
        assert match is not None  # it matches nothing, too
        end = match.end()
        decoded = match[0]
        if "\\" in decoded:
            decoded = _decode(f'"{decoded}"')
        if self._string:
            decoded = _joined(self._string + decoded)
        self._in_string = written[end : end + 1] != '"'
        if not self._is_text:  # of a key, as much as tells whether it is that of the text
            self._string = decoded[: len(INPUT) + 1] if self._key is None else ""
            return end + (not self._in_string), ""
        self._string = decoded[-1:] if self._in_string and _is_first_half(decoded[-1:]) else ""
        return end + (not self._in_string), decoded.removesuffix(self._string)


def _is_first_half(character: str) -> bool:
    return "\ud800" <= character <= "\udbff"


def _joined(text: str) -> str:
    """Join the halves of each character that was written as two escapes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
