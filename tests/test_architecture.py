"""The import table, and the plugins' lack of privilege."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import tornadoproxy
from tornadoproxy import testing
from tornadoproxy.plugin import hookspecs

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
    "plugin": BASE | {"protocol", "config", "storage"},
}
ROOMS["handlers"] = BASE | ROOMS.keys()
ROOMS["server"] = ROOMS["handlers"] | {"handlers"} - {"openai"}
ROOMS["cli"] = BASE | {"server", "plugin", "config", "protocol", "storage", "fakes"}

MAX_MODULES = 16
"""The most modules in one folder of the core."""

# The libraries that an extra of the wheel installs for one plugin.
EXTRAS = {
    "tornadoproxy_aws": {"botocore"},
    "tornadoproxy_foundry": {"azure"},
    "tornadoproxy_google": {"google"},
    "tornadoproxy_metrics": {"prometheus_client"},
    "tornadoproxy_oidc": {"authlib", "httpx2", "joserfc"},
    "tornadoproxy_otel": {"opentelemetry"},
}

# The console renders its pages with Tornado's templates.
TORNADO = {"tornadoproxy_console"}


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
        if isinstance(node, ast.expr):  # it holds no statement; most nodes are within one
            continue
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


@cache
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


@cache
def plugin_trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text()) for path in sorted(PLUGINS.rglob("*.py"))}


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Each statement, whatever holds it, without the expressions, which hold none."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.expr):
            yield node
            yield from statements(node)


def implemented(tree: ast.Module) -> set[str]:
    """Return the names of the functions that are marked as hook implementations."""
    return {
        node.name
        for node in statements(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for decorator in node.decorator_list
        if ast.unparse(decorator).startswith("hookimpl")
    }


def test_imports_have_no_circle_type_imports_included() -> None:
    graph = {name: core_imports(name, for_types=True) - {name} for name in modules()}
    assert len(graph) > 10
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_rooms_import_what_the_table_allows() -> None:
    forbidden = {
        name: others
        for name in modules()
        if room(name) in ROOMS
        and (
            others := {room(other) for other in core_imports(name, for_types=True)}
            - {room(name), *ROOMS[room(name)]}
        )
    }
    assert forbidden == {}


def test_every_module_has_a_room_and_no_room_is_full() -> None:
    folders = Counter(name.rpartition(".")[0] for name in modules() if "." in name)
    assert {room(folder) for folder in folders} == {*ROOMS, "testing"}
    assert max(folders.values()) <= MAX_MODULES


def test_core_imports_no_plugin() -> None:
    plugins = {path.name for path in PLUGINS.iterdir()}
    assert plugins >= {"tornadoproxy_token", "tornadoproxy_access_log"}
    for name, tree in modules().items():
        found = {module.split(".")[0] for module, _ in imports(tree, for_types=True)}
        assert not found & plugins, name


def test_plugins_import_only_the_public_package() -> None:
    for path, tree in plugin_trees().items():
        package = path.relative_to(PLUGINS).parts[0]
        for module, taken in imports(tree, for_types=True):
            top = module.split(".")[0]
            if top == "tornadoproxy":
                assert module == "tornadoproxy", path
                assert taken in tornadoproxy.__all__, path
            else:
                # msgspec makes changed copies of the core's own structs, as docs/plugins.md shows
                allowed = {package, "msgspec", *EXTRAS.get(package, ())} | sys.stdlib_module_names
                assert top in allowed or (top == "tornado" and package in TORNADO), path


def test_plugins_import_slow_libraries_only_when_used() -> None:
    """An inactive plugin adds no import of its database or library to the start."""
    packages = sorted(path.name for path in PLUGINS.iterdir())
    script = "import sys\nfor name in sys.argv[1:]: __import__(name)\nprint(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", script, *packages],
        # coverage, which the environment may start, imports sqlite3
        env={},
        check=True,
        capture_output=True,
        text=True,
    )
    assert set(packages) <= set(ran.stdout.split())
    slow = {"sqlite3", "psycopg", "redis"}.union(*EXTRAS.values())
    assert not slow & set(ran.stdout.split())


def test_plugin_tests_use_only_public_names() -> None:
    for path in (ROOT / "tests" / "plugins").rglob("test_*.py"):
        for module, taken in imports(ast.parse(path.read_text()), for_types=True):
            if module == "tornadoproxy":
                assert taken in {*tornadoproxy.__all__, "testing"}, path
            elif module == "tornadoproxy.testing":
                assert taken in testing.__all__, path
            else:
                assert not module.startswith("tornadoproxy."), path


def test_public_names_are_what_type_checkers_see() -> None:
    """Each name is loaded from the module that the package imports it from for type checkers."""
    tree = ast.parse((CORE / "__init__.py").read_text())
    seen = {name: module for module, name in imports(tree, for_types=True) if "." in module}
    for name, module in seen.items():
        loaded = getattr(tornadoproxy, str(name))
        assert loaded is getattr(importlib.import_module(module), str(name)), name
    assert seen.keys() == set(tornadoproxy.__all__)


def test_environment_is_read_in_main_alone() -> None:
    readers = set()
    for path in (*CORE.rglob("*.py"), *PLUGINS.rglob("*.py")):
        text = path.read_text()
        if "environ" not in text and "getenv" not in text:
            continue
        tree = ast.parse(text)
        words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        words |= {str(taken) for _, taken in imports(tree, for_types=True)}
        if words & {"environ", "environb", "getenv", "getenvb"}:
            readers.add(path)
    # the test fixtures take variables away from the SDKs; the proxy reads nothing through them
    assert readers - {CORE / "testing" / "clients.py"} == {CORE / "__main__.py"}


def test_each_hook_is_implemented_by_a_plugin() -> None:
    examples = (ast.parse(path.read_text()) for path in (ROOT / "examples").rglob("*.py"))
    used = set[str]().union(*map(implemented, (*plugin_trees().values(), *examples)))
    hooks = {name for name, each in vars(hookspecs).items() if hasattr(each, "tornadoproxy_spec")}
    assert hooks <= used
