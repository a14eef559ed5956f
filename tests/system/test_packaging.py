"""The contents of the wheel, the sdist and the container."""

from __future__ import annotations

import asyncio
import configparser
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

import tornadoproxy
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.testing import Proxy

ROOT = Path(__file__).parents[2]
IN_THE_IMAGE = (
    "uvloop",
    "metrics",
    "otel",
    "postgres",
    "redis",
    "aws",
    "azure",
    "google",
    "oidc",
)  # extras
CONTAINER = ROOT / "deploy" / "Containerfile"
PLUGINS = {"token", "access_log", "prices", "keys", "ledger", "budgets", "metrics", "otel"}
PLUGINS |= {"admin", "aws", "console", "foundry", "google", "oidc", "quota_probe", "recorder"}
UPSTREAMS = """
[[upstream]]
name = "aws"
kind = "bedrock"
region = "eu-west-1"
api_key = "key"
[[upstream]]
name = "google"
kind = "vertex"
project = "acme"
region = "global"
access_token = "token"
[[upstream]]
name = "azure"
kind = "foundry"
resource = "acme"
api_key = "key"
"""
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGES = {"tornadoproxy", *(f"tornadoproxy_{name}" for name in PLUGINS)}


def run(
    arguments: list[str], directory: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=directory,
        env={**os.environ, **variables},
        check=False,
        capture_output=True,
        text=True,
    )


def build(target: str, source: Path, directory: Path) -> Path:
    """The wheel or sdist of `source`."""
    ran = run(["-m", "hatchling", "build", "-t", target, "-d", str(directory)], source)
    assert ran.returncode == 0, ran.stderr
    (built,) = directory.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return zipfile.ZipFile(build("wheel", ROOT, tmp_path_factory.mktemp("wheel")))


def of_wheel(wheel: zipfile.ZipFile, name: str) -> str:
    """What `wheel` says of itself in this file."""
    (path,) = (each for each in wheel.namelist() if each.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    modules = {
        path.relative_to(parent).as_posix()
        for parent in (ROOT, ROOT / "plugins")
        for package in PACKAGES
        for path in (parent / package).rglob("*.py")
    }
    assert len(modules) > 30
    assert {name for name in names if name.endswith(".py")} == modules
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    top = {PurePosixPath(name).parts[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == PACKAGES


def test_wheel_names_plugins_version_license_and_python(wheel: zipfile.ZipFile) -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read_string(of_wheel(wheel, "entry_points.txt"))
    assert dict(entry_points["tornadoproxy"]) == PROJECT["entry-points"]["tornadoproxy"]
    assert entry_points["tornadoproxy"].keys() == PLUGINS
    assert dict(entry_points["console_scripts"]) == {"tornadoproxy": "tornadoproxy.__main__:main"}
    metadata = of_wheel(wheel, "METADATA")
    assert f"\nVersion: {tornadoproxy.__version__}\n" in metadata
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert of_wheel(wheel, "licenses/LICENSE")
    description = metadata.partition("\n\n")[2]
    assert description.startswith("# tornadoproxy\n")
    assert "![" in (ROOT / "README.md").read_text()
    assert "![" not in description, "no package holds the pictures"


@pytest.mark.long
def test_sdist_builds_the_same_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    with tarfile.open(build("sdist", ROOT, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("tornadoproxy-*")

    rebuilt = zipfile.ZipFile(build("wheel", source, tmp_path / "wheel"))
    assert set(rebuilt.namelist()) == set(wheel.namelist())
    assert (source / "tests" / "system" / "test_packaging.py").exists()
    assert not list(source.rglob("*.png"))


def test_imported_package_is_the_installed_one() -> None:
    """In tox the wheel, not the checkout beside it."""
    distribution = importlib.metadata.distribution("tornadoproxy")
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    editable = origin.get("dir_info", {}).get("editable", False)
    where = ROOT if editable else Path(str(distribution.locate_file("")))

    assert Path(tornadoproxy.__file__).parents[1] == where.resolve()


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_checkout_without_installation_does_not_start(command: str, tmp_path: Path) -> None:
    dependencies = tmp_path / "dependencies"  # without tornadoproxy
    dependencies.mkdir()
    for module in ("aiohappyeyeballs", "dotenv", "httptools", "msgspec", "pluggy", "tornado"):
        found = importlib.util.find_spec(module)
        assert found is not None
        assert found.origin is not None
        (dependencies / module).symlink_to(Path(found.origin).parent)
    ran = run(
        ["-S", "-m", "tornadoproxy", command],
        tmp_path,
        PYTHONPATH=os.pathsep.join((str(ROOT), str(dependencies))),
        UPSTREAM_API_KEY="key",
    )

    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert "checkout that was never installed" in line
    assert "pip install -e ." in line


async def test_container_health_check_fails_without_proxy(proxy: Proxy, tmp_path: Path) -> None:
    text = CONTAINER.read_text().replace("\\\n", "")
    (line,) = re.findall(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, re.MULTILINE)
    python, *command = json.loads(line)
    assert python == "python"

    async def status(port: int) -> int:
        arguments = [each.replace("8000", str(port)) for each in command]
        return (await asyncio.to_thread(run, arguments, tmp_path)).returncode

    assert await status(proxy.port) == 0
    with socket.socket() as not_listening:
        not_listening.bind(("127.0.0.1", 0))
        assert await status(not_listening.getsockname()[1]) != 0


@pytest.fixture
def build_context(tmp_path: Path) -> Path:
    """A directory with what the container's recipe copies, and nothing else."""
    context = tmp_path / "context"
    context.mkdir()
    for line in re.findall(r"^COPY (?!--)(.*)$", CONTAINER.read_text(), re.MULTILINE):
        for name in line.split()[:-1]:
            (context / Path(name).name).symlink_to(ROOT / name)
    return context


def test_container_copies_what_the_wheel_needs(build_context: Path, tmp_path: Path) -> None:
    """What the file copies is enough for hatchling, README and licence included."""
    built = zipfile.ZipFile(build("wheel", build_context, tmp_path / "wheel"))
    assert any(name.startswith("tornadoproxy_token/") for name in built.namelist())


@pytest.mark.long
@pytest.mark.timeout(300)
def test_container_commands_install_every_plugin(build_context: Path, tmp_path: Path) -> None:
    installed, builder, bare = (tmp_path / name for name in ("install", "builder", "bare"))
    assert run(["-m", "venv", str(builder)], tmp_path).returncode == 0
    assert run(["-m", "venv", "--without-pip", str(bare)], tmp_path).returncode == 0
    build_stage = CONTAINER.read_text().partition("\nFROM")[0]
    for command in re.findall("^RUN (.*)$", build_stage, re.MULTILINE):
        subprocess.run(
            command.replace("=/install", f"={installed}"),
            shell=True,
            check=True,
            cwd=build_context,
            env={**os.environ, "PATH": f"{builder / 'bin'}:{os.environ['PATH']}"},
        )
    (packages,) = installed.glob("lib/python*/site-packages")
    upstreams = tmp_path / "upstreams.toml"
    upstreams.write_text(UPSTREAMS)
    databases = {f"{name}_DB": str(tmp_path / "db") for name in ("KEYS", "LEDGER", "BUDGETS")}
    checked = subprocess.run(
        [
            *(bare / "bin" / "python", "-c"),
            "import sys, uvloop; from tornadoproxy.__main__ import main; sys.exit(main())",
            "check",
        ],
        cwd=tmp_path,
        env={
            "PYTHONPATH": str(packages),
            "UPSTREAMS_FILE": str(upstreams),
            "RECORD_DIR": str(tmp_path / "records"),
            "RECORD_PRINCIPALS": "*",
            "METRICS": "yes",
            "OTEL_TRACES": "yes",
            "ADMIN_KEY": f"ops={'a' * 40}",
            "CONSOLE": "yes",
            "OIDC_ISSUER": "https://id.example.com",
            "OIDC_AUDIENCES": "proxy",
            "ANSWER_QUOTA_PROBE": "yes",
            **databases,
        },
        check=True,
        capture_output=True,
        text=True,
    )
    (line,) = re.findall(r"^  plugins +(.*) \(in the order asked\)$", checked.stdout, re.MULTILINE)
    assert set(line.split(", ")) == PLUGINS


def pinned(lock: str) -> dict[str, str]:
    """The version of each requirement in `lock`; those without a hash are left out."""
    text = (ROOT / "deploy" / lock).read_text()
    assert "://" not in text, "a lock file names no index"
    return dict(re.findall(r"^([\w.-]+)==(\S+)[^\n]* \\\n    --hash=sha256:\w{64}", text, re.M))


@pytest.mark.parametrize("lock", ["requirements.txt", "build-requirements.txt"])
def test_lock_file_holds_what_pyproject_requires(lock: str) -> None:
    required = PYPROJECT["build-system"]["requires"]
    if lock == "requirements.txt":
        extras = PROJECT["optional-dependencies"]
        of_image = (each for name in IN_THE_IMAGE for each in extras[name])
        required = [*PROJECT["dependencies"], *of_image]
    versions = pinned(lock)
    for requirement in map(Requirement, required):
        assert requirement.specifier.contains(versions[requirement.name]), requirement.name


@pytest.mark.parametrize(
    "file", ["compose.yaml", "kubernetes/tornadoproxy.yaml", "kubernetes/secret.yaml"]
)
def test_deployment_files_name_only_settings(file: str) -> None:
    text = (ROOT / "deploy" / file).read_text()
    named = set(re.findall(r"(?:^ +|name: |export )([A-Z][A-Z_]+)(?=[:,=])", text, re.MULTILINE))
    known = {
        name
        for setting in (*CORE_SETTINGS, *Plugins.load().declared_settings())
        for name in (setting.name, *setting.fallbacks)
    }
    assert named
    assert {name for name in named - known if not name.startswith("POSTGRES_")} == set()


def test_group_build_is_what_builds_the_wheel() -> None:
    assert PYPROJECT["dependency-groups"]["build"] == PYPROJECT["build-system"]["requires"]
