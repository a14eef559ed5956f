"""``python -m tornadoproxy plugins new``: a package whose tests pass as they are."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tornadoproxy import ConfigurationError, __version__
from tornadoproxy.cli import new_plugin

PATIENCE = 50.0  # seconds; a limit for what would otherwise hang, never an expectation


def run(
    *arguments: str, directory: Path, path: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in `directory`, with `path` as its ``PYTHONPATH``."""
    environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def new(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return run("-m", "tornadoproxy", "plugins", "new", *arguments, directory=directory)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of a new plugin."""
    return new_plugin.generate("team-budget", tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where its wheel is installed."""
    directory = tmp_path_factory.mktemp("installed")
    built = run(
        *("-m", "hatchling", "build", "-t", "wheel", "-d", str(directory / "wheels")),
        directory=package,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = (directory / "wheels").iterdir()
    zipfile.ZipFile(wheel).extractall(directory / "site")
    return str(directory / "site")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below, hidden ones, too."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


class TestThePackage:
    def test_has_all_that_a_package_needs(self, package: Path) -> None:
        assert package.name == "tornadoproxy-team-budget"
        assert set(contents(package)) == {
            "README.md",
            "pyproject.toml",
            "tox.ini",
            "tests/conftest.py",
            "tests/test_team_budget.py",
            "tornadoproxy_team_budget/__init__.py",
            "tornadoproxy_team_budget/py.typed",
        }

    def test_is_as_open_as_any_directory(self, package: Path, tmp_path: Path) -> None:
        (tmp_path / "any").mkdir()
        assert package.stat().st_mode == (tmp_path / "any").stat().st_mode

    def test_has_no_word_left_to_fill_in(self, package: Path) -> None:
        for path, content in contents(package).items():
            assert b"${" not in content, path
            assert b"template" not in content, path

    def test_says_what_it_needs(self, package: Path) -> None:
        project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
        assert project["name"] == "tornadoproxy-team-budget"
        assert project["dependencies"] == [f"tornadoproxy>={__version__}"]
        assert project["entry-points"]["tornadoproxy"] == {
            "team_budget": "tornadoproxy_team_budget:Plugin"
        }
        assert project["optional-dependencies"]["test"] == ["tornadoproxy[test]"]

    def test_is_found_once_it_is_installed(self, installed: str, tmp_path: Path) -> None:
        shown = run("-m", "tornadoproxy", "plugins", directory=tmp_path, path=installed)
        assert shown.returncode == 0
        assert re.search(
            r"^ *- +team_budget +tornadoproxy-team-budget +0\.1\.0 +inactive$",
            shown.stdout,
            re.MULTILINE,
        )
        listed = shown.stdout.partition("\nteam_budget (tornadoproxy_team_budget:Plugin)\n")[2]
        assert "TEAM_BUDGET_MODELS  none   by default" in listed.partition("\n\n")[0]

    def test_its_tests_pass_as_they_are(self, package: Path, installed: str) -> None:
        ran = run(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider"), directory=package, path=installed
        )
        assert ran.returncode == 0, ran.stdout
        assert re.search(r"^[4-9] passed", ran.stdout, re.MULTILINE)

    def test_its_tests_fail_without_its_hook(
        self, package: Path, installed: str, tmp_path: Path
    ) -> None:
        source = (package / "tornadoproxy_team_budget" / "__init__.py").read_text()
        lamed = source.replace("@hookimpl\n    def authorize(", "def authorize(")
        assert lamed != source
        (tmp_path / "tornadoproxy_team_budget").mkdir()
        (tmp_path / "tornadoproxy_team_budget" / "__init__.py").write_text(lamed)
        ran = run(
            *("-m", "pytest", "-q", "-p", "no:cacheprovider", str(package)),
            directory=package / "tests",
            path=os.pathsep.join((str(tmp_path), installed)),
        )
        assert ran.returncode == 1, ran.stdout
        assert " failed" in ran.stdout

    @pytest.mark.skipif(not importlib.util.find_spec("ruff"), reason="ruff is not installed")
    @pytest.mark.parametrize("name", ["a", "team-budget"])
    def test_is_as_its_linter_wants_it(self, tmp_path: Path, name: str) -> None:
        package = new_plugin.generate(name, tmp_path)
        for arguments in (["check"], ["format", "--check"]):
            ran = run("-m", "ruff", *arguments, "--no-cache", directory=package)
            assert ran.returncode == 0, ran.stdout

    @pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed")
    def test_is_as_its_type_checker_wants_it(self, package: Path, tmp_path: Path) -> None:
        # not its tests, which import the SDKs: that takes a quarter of a minute
        arguments = ["--cache-dir", str(tmp_path), "tornadoproxy_team_budget"]
        ran = run("-m", "mypy", *arguments, directory=package)
        assert ran.returncode == 0, ran.stdout


class TestTheCommand:
    def test_says_what_it_made_and_what_comes_next(self, tmp_path: Path) -> None:
        (tmp_path / "my plugins").mkdir()
        done = new("acme", "--directory", "my plugins", directory=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        made, following = done.stdout.split("next\n")
        paths = [line.strip() for line in made.splitlines()[1:]]
        assert {tmp_path / path for path in paths} == {
            tmp_path / path for path in contents(tmp_path)
        }
        commands = [shlex.split(line) for line in following.splitlines()]
        assert len(commands) == 3
        assert commands[0] == ["cd", "my plugins/tornadoproxy-acme"]
        assert commands[1][-2:] == ["-e", ".[test]"]
        assert commands[2] == ["python", "-m", "pytest"]

    def test_goes_by_its_help(self, tmp_path: Path) -> None:
        done = new("--help", directory=tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith("usage: python -m tornadoproxy plugins new [-h] ")

    @pytest.mark.parametrize(
        "name",
        [
            "",
            "Team",
            "1team",
            "team_",
            "-team",
            "team budget",
            "../team",
            "ünited",
            "x" * 41,
            "a__b",
        ],
    )
    def test_a_bad_name(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ConfigurationError, match="the name must be at most 40 lower-case"):
            new_plugin.generate(name, tmp_path)
        assert list(tmp_path.iterdir()) == []

    # a plugin's, a package's, and one whose setting would be CHAT_MODELS
    @pytest.mark.parametrize("name", ["token", "access-log", "chat"])
    def test_a_taken_name(self, tmp_path: Path, name: str) -> None:
        done = new(name, directory=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        taken = name.replace("-", "_")
        assert done.stderr == f"tornadoproxy: the name {taken} is taken: choose another\n"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
    def test_what_is_there_is_not_touched(self, tmp_path: Path, kind: str) -> None:
        there = tmp_path / "tornadoproxy-acme"
        if kind == "directory":
            there.mkdir()
            (there / "mine").write_text("mine")
        elif kind == "file":
            there.write_text("mine")
        else:
            there.symlink_to("nowhere")
        before = contents(tmp_path)
        done = new("acme", directory=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("tornadoproxy: tornadoproxy-acme is there already: ")
        assert contents(tmp_path) == before
        assert list(tmp_path.iterdir()) == [there]

    def test_a_directory_that_is_none(self, tmp_path: Path) -> None:
        done = new("acme", "--directory", "absent", directory=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("tornadoproxy: tornadoproxy-acme cannot be made (No such file")
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_left_of_half_a_package(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_text = Path.write_text

        def full(path: Path, content: str, encoding: str) -> int:
            if path.name == "tox.ini":
                raise OSError(28, "No space left on device")
            return write_text(path, content, encoding)

        monkeypatch.setattr(Path, "write_text", full)
        with pytest.raises(ConfigurationError, match="No space left on device"):
            new_plugin.generate("acme", tmp_path)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ([], "the following arguments are required: NAME (see "),
            (["acme", "more"], "there is an argument that belongs to no flag: the command "),
            (["acme", "--direktory", "x"], "unknown flag --direktory: did you mean --directory?"),
        ],
    )
    def test_wrong_arguments_are_told(
        self, tmp_path: Path, arguments: list[str], told: str
    ) -> None:
        done = new(*arguments, directory=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"tornadoproxy: {told}")
        assert list(tmp_path.iterdir()) == []
