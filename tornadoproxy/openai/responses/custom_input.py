"""The text in the input of a custom tool, decoded while it streams.

OpenAI's custom tools take text; the upstream's take an object. So the model writes
``{"input": "the text"}``, which comes in fragments that are cut anywhere: within an escape, or
between the two escapes of one character.
"""

from __future__ import annotations

import re

INPUT = "input"
"""The property that holds the text."""

_STRUCTURE = re.compile(r'["{}\[\]:,]')
# the fourth is an invalid escape
_IN_STRING = re.compile(r'[^"\\]+|\\u[0-9a-fA-F]{4}|\\[^u]|\\u[0-9a-fA-F]{0,3}(?=[^0-9a-fA-F])|"')
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_HALF = re.compile(r"[\ud800-\udfff]")
_OPENS = frozenset("{[")
_CLOSES = frozenset("}]")


class InputText:
    """Decodes the text of a custom tool's input out of JSON that comes in fragments.

    JSON of another form has no text. Invalid JSON is read as far as possible.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._key: str | None = None  # of the value that follows, in the outermost object
        self._in_string = False
        self._string = ""  # so far: a key, or the text that has not been returned yet
        self._rest = ""  # the beginning of an escape

    def feed(self, fragment: str) -> str:
        """Return the text that a fragment of the JSON adds."""
        written = self._rest + fragment
        at = 0
        found = []
        while True:
            if self._in_string:
                match = _IN_STRING.match(written, at)
            else:
                match = _STRUCTURE.search(written, at)
            if match is None:
                break
            at = match.end()
            if self._in_string:
                found.append(self._take_piece(match[0]))
            else:
                self._take_mark(match[0])
        self._rest = written[at:] if self._in_string else ""
        if self._in_string and self._is_text:
            found.append(self._complete())
        return "".join(found)

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

    def _take_piece(self, piece: str) -> str:
        """Return the text that was held back, once its string has ended."""
        if piece != '"':
            self._string += _unescaped(piece) if piece[0] == "\\" else piece
            return ""
        self._in_string = False
        if not self._is_text:
            return ""
        text, self._string = _joined(self._string), ""
        return text

    def _complete(self) -> str:
        """Return the text so far, but hold back half of a character: its other half may follow."""
        text = _joined(self._string)
        end = len(text) - (text[-1:] >= "\ud800" and text[-1:] <= "\udbff")
        self._string = text[end:]
        return text[:end]


def _unescaped(escape: str) -> str:
    if escape[1] != "u":
        return _ESCAPES.get(escape[1], escape[1])
    return chr(int(escape[2:], 16)) if len(escape) == 6 else ""


def _joined(text: str) -> str:
    """Join the halves of each character that was written as two escapes."""
    if not _HALF.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
