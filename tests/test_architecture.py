"""The house keeps its shape: imports point one way, plugins have no privilege, hooks have users."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import tornadoproxy
from tornadoproxy import testing
from tornadoproxy.plugin import hookspecs

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
CORE = ROOT / "tornadoproxy"
PLUGINS = ROOT / "plugins"

# What the modules of each room may import of the core, besides their own room.
BASE = {"errors", "secret", "version"}
ROOMS = {
    "protocol": BASE,
    "fakes": BASE,
    "storage": BASE,
    "config": BASE | {"protocol"},
    "openai": BASE | {"protocol"},
    "upstream": BASE | {"protocol", "config"},
    "plugin": BASE | {"protocol", "config"},
}
ROOMS["handlers"] = BASE | ROOMS.keys()
ROOMS["server"] = ROOMS["handlers"] | {"handlers"} - {"openai"}
ROOMS["cli"] = BASE | {"server", "plugin", "config", "protocol", "fakes"}

MAX_MODULES = 16
"""The most modules in one folder of the core."""

# The library that an extra of the wheel installs for one plugin.
EXTRAS = {"tornadoproxy_metrics": "prometheus_client", "tornadoproxy_otel": "opentelemetry"}


@cache
def modules() -> dict[str, ast.Module]:
    """The core's modules by their names below ``tornadoproxy``; a package's own is the package."""
    found = {}
    for path in CORE.rglob("*.py"):
        parts = path.relative_to(CORE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.AST, *, for_types: bool) -> Iterator[tuple[str, str | None]]:
    """Each imported module, with the name that is taken from it, if one is.

    :param for_types: those within ``if TYPE_CHECKING`` as well.
    """
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)
        elif for_types or not (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            yield from imports(node, for_types=for_types)


def core_imports(name: str, *, for_types: bool) -> set[str]:
    """The core's modules that the core's module `name` imports."""
    found = set()
    for module, taken in imports(modules()[name], for_types=for_types):
        top, _, rest = module.partition(".")
        if top != "tornadoproxy":
            continue
        submodule = f"{rest}.{taken}" if rest else str(taken)
        found.add(submodule if submodule in modules() else rest or "__init__")
    return found


def room(name: str) -> str:
    return name.partition(".")[0]


def plugin_files() -> list[Path]:
    return sorted(PLUGINS.rglob("*.py"))


def plugin_tests() -> list[Path]:
    return sorted((ROOT / "tests" / "plugins").rglob("test_*.py"))


def hooks() -> list[str]:
    return [name for name, each in vars(hookspecs).items() if hasattr(each, "tornadoproxy_spec")]


def implemented(tree: ast.Module) -> set[str]:
    """The names of the functions that are marked as hook implementations."""
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for decorator in node.decorator_list
        if ast.unparse(decorator).startswith("hookimpl")
    }


def test_no_import_is_circular_those_for_types_included() -> None:
    graph = {name: core_imports(name, for_types=True) - {name} for name in modules()}
    assert len(graph) > 10
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


@pytest.mark.parametrize("name", sorted(name for name in modules() if room(name) in ROOMS))
def test_room_imports_what_the_table_allows(name: str) -> None:
    others = {room(other) for other in core_imports(name, for_types=True)} - {room(name)}
    assert others <= ROOMS[room(name)]


def test_every_module_has_a_room_and_no_room_is_full() -> None:
    folders = Counter(name.rpartition(".")[0] for name in modules() if "." in name)
    assert {room(folder) for folder in folders} == {*ROOMS, "testing"}
    assert max(folders.values()) <= MAX_MODULES


@pytest.mark.parametrize("name", sorted(modules()))
def test_the_core_imports_no_plugin(name: str) -> None:
    plugins = {path.name for path in PLUGINS.iterdir()}
    assert plugins >= {"tornadoproxy_token", "tornadoproxy_access_log"}
    found = {module.split(".")[0] for module, _ in imports(modules()[name], for_types=True)}
    assert not found & plugins


@pytest.mark.parametrize("path", plugin_files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_plugins_import_what_anybody_may(path: Path) -> None:
    package = path.relative_to(PLUGINS).parts[0]
    for module, taken in imports(ast.parse(path.read_text()), for_types=True):
        top = module.split(".")[0]
        if top == "tornadoproxy":
            assert module == "tornadoproxy"
            assert taken in tornadoproxy.__all__
        else:
            assert top in {package, EXTRAS.get(package)} | sys.stdlib_module_names


@pytest.mark.parametrize("package", sorted(path.name for path in PLUGINS.iterdir()))
def test_a_plugin_that_sleeps_costs_the_start_nothing(package: str) -> None:
    """What is slow to import is imported by what needs it."""
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys, {package}; print(*sys.modules)"],
        # whoever measures coverage has sqlite3 imported, by what is in the environment
        env={},
        check=True,
        capture_output=True,
        text=True,
    )
    slow = {"sqlite3", EXTRAS.get(package)}
    assert not slow & set(ran.stdout.split())


@pytest.mark.parametrize("path", plugin_tests(), ids=lambda path: path.stem)
def test_the_tests_of_plugins_reach_no_further_than_anybodys(path: Path) -> None:
    for module, taken in imports(ast.parse(path.read_text()), for_types=True):
        if module == "tornadoproxy":
            assert taken in {*tornadoproxy.__all__, "testing"}
        elif module == "tornadoproxy.plugin.manager":
            assert taken == "Plugins"
        elif module == "tornadoproxy.testing":
            assert taken in testing.__all__
        else:
            assert not module.startswith("tornadoproxy.")


def test_all_that_is_offered_to_plugins_is_there() -> None:
    assert len(set(tornadoproxy.__all__)) == len(tornadoproxy.__all__)
    for name in tornadoproxy.__all__:
        assert hasattr(tornadoproxy, name)


def test_the_environment_is_read_in_one_place() -> None:
    trees = {**modules(), **{str(path): ast.parse(path.read_text()) for path in plugin_files()}}
    readers = set()
    for name, tree in trees.items():
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {str(taken) for _, taken in imports(tree, for_types=True)}
        if words & {"environ", "environb", "getenv", "getenvb"}:
            readers.add(name)
    # the test fixtures take variables away from the SDKs; the proxy reads nothing through them
    assert readers - {"testing.clients"} == {"__main__"}


@pytest.mark.parametrize("hook", hooks())
def test_each_hook_is_documented(hook: str) -> None:
    text = inspect.getdoc(getattr(hookspecs, hook)) or ""
    first, _, rest = text.partition("\n")
    assert first.endswith(".")
    assert "Runs " in rest, "it says when it runs"
    assert len(rest.split()) >= 20, "it says what may be done there, and what comes of an error"


@pytest.mark.parametrize("hook", hooks())
def test_each_hook_is_used_by_a_plugin_of_ours(hook: str) -> None:
    paths = [*plugin_files(), *(ROOT / "examples").rglob("*.py")]
    used = set().union(*(implemented(ast.parse(path.read_text())) for path in paths))
    assert hook in used
