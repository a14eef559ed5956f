"""The ``.env`` file: its format, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from given import CANARY, sources

from tornadoproxy.config import env_file


@pytest.mark.parametrize(
    ("content", "value"),
    [
        *((f"{start}AUTH_TOKEN=abc", "abc") for start in ("\ufeff", "export ", "# a\n\n  ")),
        *((f"AUTH_TOKEN{rest}", "abc") for rest in (" = abc # mine", "='abc'\r\n", '="abc"')),
        ("AUTH_TOKEN=a=b,c#def", "a=b,c#def"),
        ("AUTH_TOKEN='schlüssel # def'", "schlüssel # def"),
        ("AUTH_TOKEN=$HOME/${HOME}", "$HOME/${HOME}"),
        ("AUTH_TOKEN=old\nAUTH_TOKEN=new", "new"),
        ("AUTH_TOKEN=a\u2028b", "a\u2028b"),
        ("AUTH_TOKEN=", ""),
    ],
)
def test_env_file_value_in_each_format_is_read(tmp_path: Path, content: str, value: str) -> None:
    read = sources(tmp_path, file=content).env_file
    assert read.faults == ()
    assert read.entries["AUTH_TOKEN"].value == value


UNPARSED, UNASSIGNED = "cannot be parsed: write NAME=value", "has no =: write NAME=value"


@pytest.mark.parametrize(
    ("content", "faults"),
    [
        (f"PORT=1\n\n'{CANARY}\n", {3: UNPARSED}),
        (f"PORT=1\nAUTH_TOKEN='a' {CANARY}\n", {2: UNPARSED}),
        (f"{CANARY}\nPORT=1\n'\nexport {CANARY}\n", {1: UNASSIGNED, 3: UNPARSED, 4: UNASSIGNED}),
        (f'PORT=1\nA="{CANARY}\nB="\n', {2: "a quote is not closed on its line: close it"}),
    ],
)
def test_env_file_bad_lines_are_named_by_number_only(
    tmp_path: Path, content: str, faults: dict[int, str]
) -> None:
    read = sources(tmp_path, file=content).env_file
    path = tmp_path / ".env"
    assert read.faults == tuple(f"{path}, line {line}: {told}" for line, told in faults.items())
    assert read.entries["PORT"].value == "1"


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (_written(b"PORT=1\0"), "is binary: replace or remove it"),
        (_written("PORT=1".encode("utf-16")), "is not UTF-8 text: fix or remove it"),
        (_written(b"#" * 65_537), "is larger than 64 kB: shorten or remove it"),
        (os.mkfifo, "is not a regular file: replace or remove it"),
        (
            lambda path: path.symlink_to(path),
            "cannot be read (Too many levels of symbolic links): fix or remove it",
        ),
        (lambda path: path.symlink_to("moved-away"), "does not exist: create it or name another"),
    ],
)
def test_env_file_that_cannot_be_used_is_a_fault(
    tmp_path: Path, make: Callable[[Path], object], told: str
) -> None:
    make(tmp_path / ".env")
    assert sources(tmp_path).env_file.faults == (f"{tmp_path / '.env'} {told}",)


def test_env_file_that_is_absent_is_a_fault_if_required(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert env_file.read(str(path), required=False).faults == ()
    told = f"{path} does not exist: create it or name another"
    assert env_file.read(str(path), required=True).faults == (told,)
    path.write_bytes(b"#" * 65_536)
    assert env_file.read(str(path), required=True).faults == ()
    assert env_file.read(os.devnull, required=True).faults == ()
