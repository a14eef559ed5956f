"""The command line in this process: arguments and environment in, exit status and output out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import program
import pytest

from tornadoproxy.cli import main as cli


class Done(NamedTuple):
    """A command that has ended."""

    status: int
    output: str
    errors: str


class Commands:
    """Runs commands in `directory`, where plugins can be installed."""

    def __init__(self, directory: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.installed: list[str] = []
        self._capture = capture

    def install(self, name: str, source: str) -> None:
        """Install a package with one plugin, version 1.5."""
        program.install(self.directory, name, source)
        self.installed.append(name)
        importlib.invalidate_caches()

    def run(self, *arguments: str, file: str | None = None, **variables: str) -> Done:
        """Run a command with `file` as its ``.env`` and `variables` as its environment."""
        if file is not None:
            (self.directory / ".env").write_text(file)
        self._capture.readouterr()
        try:
            status = cli.main(arguments, variables)
        except SystemExit as end:
            status = int(end.code or 0)
        return Done(status, *self._capture.readouterr())

    def refusal(self, *arguments: str, file: str | None = None, **variables: str) -> str:
        """Run a command that is refused with one line, and return it without the program's name."""
        done = self.run(*arguments, file=file, **variables)
        assert (done.status, done.output) == (2, "")
        (line,) = done.errors.splitlines()
        name, _, told = line.partition(": ")
        assert name == "tornadoproxy"
        return told


@pytest.fixture
def commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Commands]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = Commands(tmp_path, capfd)
    yield found
    for name in found.installed:
        sys.modules.pop(name, None)
