"""``plugins new``: a package whose tests pass as they are."""

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
from in_process import Commands

from tornadoproxy import ConfigurationError, __version__
from tornadoproxy.cli import new_plugin

PATIENCE = 50.0  # seconds; a limit for what would otherwise hang, never an expectation


def run(*arguments: str, directory: Path, path: str | None = None) -> str:
    """Run Python in `directory`, with `path` as its ``PYTHONPATH``, and return what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path} if path else dict(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_plugin.generate("team-budget", tmp_path_factory.mktemp("new"))


@pytest.fixture(scope="module")
def installed(package: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("installed")
    wheels = directory / "wheels"
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), directory=package)
    (wheel,) = wheels.iterdir()
    zipfile.ZipFile(wheel).extractall(directory / "site")
    return str(directory / "site")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory`, hidden ones included."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_package_has_every_file_and_no_placeholder(package: Path, tmp_path: Path) -> None:
    assert package.name == "tornadoproxy-team-budget"
    files = contents(package)
    assert files.keys() == {
        *("README.md", "pyproject.toml", "tox.ini"),
        *("tests/conftest.py", "tests/test_team_budget.py"),
        *("tornadoproxy_team_budget/__init__.py", "tornadoproxy_team_budget/py.typed"),
    }
    for path, content in files.items():
        assert b"${" not in content, path
        assert b"template" not in content, path
    project = tomllib.loads(files["pyproject.toml"].decode())["project"]
    assert project["dependencies"] == [f"tornadoproxy>={__version__}"]
    assert project["optional-dependencies"]["test"] == ["tornadoproxy[test]"]
    (tmp_path / "any").mkdir()
    assert package.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_package_installed_is_a_plugin(installed: str, tmp_path: Path) -> None:
    shown = run("-m", "tornadoproxy", "plugins", directory=tmp_path, path=installed)
    line = r"(?m)^ *- +team_budget +tornadoproxy-team-budget +0\.1\.0 +inactive$"
    assert re.search(line, shown)
    listed = shown.partition("\nteam_budget (tornadoproxy_team_budget:Plugin)\n")[2]
    assert "TEAM_BUDGET_MODELS  none   by default" in listed.partition("\n\n")[0]


@pytest.mark.long
def test_package_tests_pass(package: Path, installed: str) -> None:
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", directory=package, path=installed)
    assert re.search(r"^[4-9] passed", ran, re.MULTILINE)


@pytest.mark.skipif(not importlib.util.find_spec("ruff"), reason="ruff is not installed")
@pytest.mark.parametrize("name", ["a", "team-budget"])
def test_package_passes_its_linter(tmp_path: Path, name: str) -> None:
    package = new_plugin.generate(name, tmp_path)
    run("-m", "ruff", "check", "--no-cache", directory=package)
    run("-m", "ruff", "format", "--check", "--no-cache", directory=package)


@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("mypy"), reason="mypy is not installed")
def test_package_passes_its_type_checker(package: Path, tmp_path: Path) -> None:
    # not its tests, which import the SDKs: that takes a quarter of a minute
    arguments = ["--cache-dir", str(tmp_path), "tornadoproxy_team_budget"]
    run("-m", "mypy", *arguments, directory=package)


def test_new_prints_the_files_and_next_steps(commands: Commands) -> None:
    (commands.directory / "my plugins").mkdir()
    done = commands.run("plugins", "new", "acme", "--directory", "my plugins")
    assert (done.status, done.errors) == (0, "")
    created, following = done.output.split("next\n")
    paths = [line.strip() for line in created.splitlines()[1:]]
    assert set(paths) == contents(commands.directory).keys()
    steps = [shlex.split(line) for line in following.splitlines()]
    assert [step[-1] for step in steps] == ["my plugins/tornadoproxy-acme", ".[test]", "pytest"]
    assert steps[0][0] == "cd"


@pytest.mark.parametrize(
    "name",
    [
        *("", "Team", "1team", "team_", "-team", "team budget", "../team", "ünited", "a__b"),
        "x" * 41,
    ],
)
def test_new_name_that_is_invalid_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="the name must be at most 40 lower-case"):
        new_plugin.generate(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


# a plugin's, a package's, and one whose setting would be CHAT_MODELS
@pytest.mark.parametrize("name", ["token", "access-log", "chat"])
def test_new_name_that_is_taken_is_refused(commands: Commands, name: str) -> None:
    told = f"the name {name.replace('-', '_')} is taken: choose another"
    assert commands.refusal("plugins", "new", name) == told
    assert list(commands.directory.iterdir()) == []


def test_new_does_not_touch_what_exists(commands: Commands) -> None:
    existing = commands.directory / "tornadoproxy-acme"
    existing.mkdir()
    (existing / "mine").write_text("mine")
    assert commands.refusal("plugins", "new", "acme").startswith(f"{existing.name} already exists:")
    assert contents(commands.directory) == {f"{existing.name}/mine": b"mine"}
    dangling = commands.directory / "tornadoproxy-buy"
    dangling.symlink_to("nowhere")
    assert commands.refusal("plugins", "new", "buy").startswith(f"{dangling.name} already exists:")
    assert set(commands.directory.iterdir()) == {existing, dangling}


def test_new_that_fails_halfway_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        (["acme", "--directory", "absent"], "tornadoproxy-acme cannot be created (No such file"),
    ],
)
def test_new_arguments_that_are_wrong_are_a_fault(
    commands: Commands, arguments: list[str], told: str
) -> None:
    assert commands.refusal("plugins", "new", *arguments).startswith(told)
    assert list(commands.directory.iterdir()) == []
