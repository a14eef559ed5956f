"""The plugin of the README, and that every example package is tested.

The example packages have tests of their own, each in an environment of its own.
"""

from __future__ import annotations

import configparser
import importlib
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from ipaddress import ip_network
from pathlib import Path
from types import ModuleType

import pytest
from documents import ROOT
from in_process import Commands
from scene import Scene

from tornadoproxy.testing import TEST_TOKEN

OFFICE = ROOT / "examples" / "tornadoproxy-office"
PACKAGES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(OFFICE)
    return importlib.import_module("tornadoproxy_office")


@pytest.mark.parametrize(
    ("address", "token", "origin", "status", "principal"),
    [
        ("10.20.3.4", None, None, 200, "office 10.20.3.4"),
        ("10.20.3.4", None, "https://attacker.example", 403, "office 10.20.3.4"),
        ("10.21.3.4", TEST_TOKEN, None, 200, "token"),
        ("10.21.3.4", None, None, 401, None),
        ("10.20.3.4, unknown", None, None, 401, None),
    ],
    ids=["in the office", "web page in the office", "token", "no token", "unknown address"],
)
async def test_office_plugin_accepts_addresses_of_the_office(
    address: str,
    token: str | None,
    origin: str | None,
    status: int,
    principal: str | None,
    office: ModuleType,
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "unknown" in address:  # the load balancer itself is in the office's network
        monkeypatch.setattr(office, "OFFICE", ip_network("127.0.0.0/8"))
    settings = {"TRUSTED_PROXIES": "127.0.0.1", "ALLOWED_HOSTS": "claude.example.com"}
    await scene.start(plugins={"office": office}, **settings)
    headers = {"X-Forwarded-For": address, "Host": "claude.example.com"}
    if origin:
        headers["Origin"] = origin
    assert (await scene.ask("/v1/models", headers=headers, token=token)).status == status
    assert (await scene.records.finished()).principal == principal


def test_office_package_is_found_once_installed(commands: Commands) -> None:
    directory = commands.directory
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory)
    subprocess.run(build, cwd=OFFICE, check=True, capture_output=True)
    (wheel,) = directory.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(directory / "site")

    listed = json.loads(commands.run("plugins", "--format", "json").output)
    office, token = (each for each in listed if each["name"] in ("office", "token"))
    assert (office["name"], office["distribution"]) == ("office", "tornadoproxy-office")
    assert (office["version"], office["state"]) == ("0.1.0", "active")
    assert office["order"] < token["order"]


def test_office_plugin_has_at_most_ten_lines() -> None:
    code = (OFFICE / "tornadoproxy_office.py").read_text()
    assert len([line for line in code.splitlines() if line]) <= 10


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_example_is_a_whole_distribution_that_is_tested(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == package.name
    assert any(each.startswith("tornadoproxy") for each in project["dependencies"])
    (entry,) = project["entry-points"]["tornadoproxy"].values()
    module = package / entry.partition(":")[0]
    assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()
    if package == OFFICE:  # which is tested here
        return

    assert list((package / "tests").glob("test_*.py"))
    assert (package / "README.md").is_file()
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    directory = package.relative_to(ROOT).as_posix()
    assert f"mypy {directory}" in tox["testenv:type"]["commands"].split("\n")
    (environment,) = (
        name.removeprefix("testenv:")
        for name in tox.sections()
        if tox[name].get("change_dir") == directory
    )
    run = re.search(r'^examples="(.*)"$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert run is not None
    assert environment in run[1].split(",")
