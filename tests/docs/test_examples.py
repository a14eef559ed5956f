"""The plugin of the README, and that every example package is tested.

The example packages have tests of their own, each in an environment of its own.
"""

from __future__ import annotations

import configparser
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tornadoproxy.testing import (
    TEST_TOKEN,
    Ask,
    Proxy,
    Records,
    ScriptedUpstream,
    StartProxy,
)

if TYPE_CHECKING:
    from types import ModuleType

    from tornado.ioloop import IOLoop

ROOT = Path(__file__).parents[2]
OFFICE = ROOT / "examples" / "tornadoproxy-office"
PACKAGES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))


@pytest.fixture
def office() -> ModuleType:
    path = OFFICE / "tornadoproxy_office.py"
    spec = importlib.util.spec_from_file_location("tornadoproxy_office", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def proxy(io_loop: IOLoop, start_proxy: StartProxy, office: ModuleType) -> Proxy:
    """With the plugin, behind a proxy on this machine that says where requests come from."""
    started: Proxy = io_loop.run_sync(
        lambda: start_proxy(
            plugins={"office": office},
            TRUSTED_PROXIES="127.0.0.1",
            ALLOWED_HOSTS="claude.example.com",
        )
    )
    return started


IN_OFFICE = ("X-Forwarded-For", "10.20.3.4")
OUTSIDE = ("X-Forwarded-For", "10.21.3.4")
HOST = ("Host", "claude.example.com")


@pytest.mark.parametrize(
    ("headers", "token", "status", "principal"),
    [
        ([IN_OFFICE, HOST], None, 200, "office 10.20.3.4"),
        ([OUTSIDE], TEST_TOKEN, 200, "token"),
        ([OUTSIDE], "guess", 401, None),
        ([OUTSIDE], None, 401, None),
        ([IN_OFFICE, HOST, ("Origin", "https://attacker.example")], None, 403, None),
    ],
    ids=["in the office", "token", "wrong token", "no token", "web page in the office"],
)
async def test_office_plugin_accepts_addresses_of_the_office(
    headers: list[tuple[str, str]],
    token: str | None,
    status: int,
    principal: str | None,
    ask: Ask,
    proxy: Proxy,
    records: Records,
    upstream: ScriptedUpstream,
) -> None:
    response = await ask("/v1/models", headers=headers, token=token, to=proxy)

    assert response.status == status
    assert len(upstream.requests) == (status == 200)
    if status != 403:
        assert (await records.finished()).principal == principal


@pytest.mark.parametrize("forwarded", ["unknown", "10.20.3.4, unknown", "", "10.20.3.4, _gateway"])
async def test_office_plugin_rejects_an_unknown_address(
    forwarded: str,
    ask: Ask,
    proxy: Proxy,
    office: ModuleType,
    records: Records,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the balancer itself is in the office's network
    monkeypatch.setattr(office, "OFFICE", ip_network("127.0.0.0/8"))
    headers = [("X-Forwarded-For", forwarded)]

    assert (await ask("/v1/models", headers=headers, token=None, to=proxy)).status == 401
    assert (await records.finished()).remote_ip == "unknown"


def test_office_package_is_found_once_installed(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}

    def run(*arguments: str, directory: Path) -> str:
        ran = subprocess.run(
            [sys.executable, *arguments],
            cwd=directory,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return ran.stdout

    wheels = tmp_path / "wheels"
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels), directory=OFFICE)
    (wheel,) = wheels.iterdir()
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")

    table, *_ = run("-m", "tornadoproxy", "plugins", directory=tmp_path).split("\n\n")
    rows = [line.split() for line in table.splitlines()]
    names = [row[1] for row in rows]
    assert names.index("office") < names.index("token")
    assert rows[names.index("office")][2:5] == ["tornadoproxy-office", "0.1.0", "active"]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_example_is_a_whole_distribution(package: Path) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]

    assert project["name"] == package.name
    assert any(each.startswith("tornadoproxy") for each in project["dependencies"])
    (entry,) = project["entry-points"]["tornadoproxy"].values()
    module = package / entry.partition(":")[0]
    assert module.with_suffix(".py").is_file() or (module / "__init__.py").is_file()


@pytest.mark.parametrize(
    "package", [path for path in PACKAGES if path != OFFICE], ids=lambda path: path.name
)
def test_example_has_an_environment_in_tox_and_ci(package: Path) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    directory = package.relative_to(ROOT).as_posix()
    (environment,) = (
        name.removeprefix("testenv:")
        for name in tox.sections()
        if tox[name].get("change_dir") == directory
    )
    run = re.search(r'^examples="(.*)"$', (ROOT / ".ci" / "run").read_text(), re.MULTILINE)

    assert list((package / "tests").glob("test_*.py"))
    assert (package / "README.md").is_file()
    assert f"mypy {directory}" in tox["testenv:type"]["commands"].split("\n")
    assert run is not None
    assert environment in run[1].split(",")
