"""The text of a custom tool's input, decoded from JSON that is cut anywhere."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st
from properties import holds_of

from tornadoproxy.openai.responses.custom_input import InputText

SHORT = {'"': '"', "\\": "\\", "/": "/", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
ANY = st.text(st.one_of(st.sampled_from('"\\/\n\t\x00\ud83d\ude00😀é{},:'), st.characters()))
OTHERS = (
    "",
    '"inputs": "no", ',
    '"a": {"input": "no"}, ',
    '"b": ["input", "no"], "c": null,\n',
    '"d\\"": "input",',
)
BLANKS = st.sampled_from(("", " ", "\r\n\t "))


def read(*fragments: str) -> str:
    text = InputText()
    return "".join(text.feed(fragment) for fragment in fragments)


def escapes(unit: str) -> list[str]:
    """Return all ways to write a character, or half of one, in a JSON string."""
    written = [unit] if unit >= " " and unit not in '"\\' else []
    if unit in SHORT:
        written.append(f"\\{SHORT[unit]}")
    halves = unit.encode("utf-16-be", "surrogatepass")
    pairs = [halves[at : at + 2].hex() for at in range(0, len(halves), 2)]
    return [*written, *("".join(f"\\u{case(pair)}" for pair in pairs) for case in (str, str.upper))]


@st.composite
def encodings(draw: st.DrawFn) -> tuple[str, str]:
    """Return a text and a JSON encoding of an input that has it."""
    string = "".join(draw(st.sampled_from(escapes(unit))) for unit in draw(ANY))
    key = "".join(draw(st.sampled_from(escapes(unit))) for unit in "input")
    blank = [draw(BLANKS) for _ in range(4)]
    other = draw(st.sampled_from(OTHERS))
    document = f'{blank[0]}{{{other}"{key}"{blank[1]}:{blank[2]}"{string}"{blank[3]}}}'
    value: str = json.loads(document)["input"]
    return value, document


@holds_of(encodings(), st.lists(st.integers(0, 10**6), max_size=12))
def test_any_encoding_cut_anywhere_gives_the_text(
    encoded: tuple[str, str], cuts: list[int]
) -> None:
    text, document = encoded
    ends = sorted({cut % (len(document) + 1) for cut in cuts} | {len(document)})
    fragments = [document[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    assert read(*fragments) == read(*document) == text


@holds_of(encodings(), st.integers(0, 10**6))
def test_input_that_was_cut_gives_the_beginning(encoded: tuple[str, str], cut: int) -> None:
    text, document = encoded
    found = read(document[: cut % (len(document) + 1)])
    assert text.startswith(found)


def test_each_fragment_gives_what_it_adds_at_once() -> None:
    fragments = ('{"in', 'put": "a', r"\n", r"\ud83d", r"\ude0", "0b", r"\ud83d", 'c"', "}")
    text = InputText()
    given = [text.feed(fragment) for fragment in fragments]
    assert given == ["", "a", "\n", "", "", "😀b", "", "\ud83dc", ""]


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ("", ""),
        ("{}", ""),
        ('{"input": 7}', ""),
        ('{"input": {"input": "no"}}', ""),
        ('["input", "no"]', ""),
        ('{"patch": "no"}', ""),
        (r'{"input": "a\u12x", "input": "b"', "a"),
        (r'{"input": "a\qb", "input": "c"', "a"),
        ('}]{"input": "a"', ""),
    ],
)
def test_other_input_gives_no_text_and_no_error(document: str, text: str) -> None:
    assert read(document) == read(*document) == text
