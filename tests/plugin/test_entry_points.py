"""The installed entry points are those that `importlib.metadata` finds."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, DistributionFinder, entry_points
from pathlib import Path

import pytest

from tornadoproxy.plugin.loading.entry_points import Point, installed

GROUP = "acme.plugins"
PLAIN = f"[{GROUP}]\none = package.module:object.attribute\n"
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"


def described(points: Iterable[Point]) -> list[tuple[str, ...]]:
    """Return all that is used of each entry point, but what it loads."""
    found = [
        (each.name, each.value, *((each.dist.name, each.dist.version) if each.dist else ()))
        for each in points
    ]
    return sorted(found)


def install(site: Path, packages: Mapping[str, str]) -> None:
    """Write metadata folders: the entry points of each by its name."""
    for folder, text in packages.items():
        name, version = folder.rpartition(".")[0].split("-")
        info = site / folder
        info.mkdir(parents=True)
        for kind in ("METADATA", "PKG-INFO"):
            (info / kind).write_text(METADATA.format(name=name, version=version))
        (info / "entry_points.txt").write_text(text, newline="")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; `sys.path` consists of its folders ``first`` and ``second``."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.setattr(sys, "path", [str(first), str(tmp_path / "absent"), str(second)])
    return tmp_path


@pytest.mark.parametrize(
    ("packages", "names"),
    [
        ({"first/a-1.dist-info": PLAIN, "second/b-1.dist-info": PLAIN}, ["one", "one"]),
        # of a package that is installed twice the first counts, whether it has any or not
        ({"first/a_b-1.dist-info": "", "second/A.b-2.dist-info": PLAIN}, []),
        ({"first/a-1.egg-info": PLAIN}, ["one"]),
        (
            {
                "first/a-1.dist-info": f"[x]\r\nno=n\r\n\r\n [{GROUP}] \r\n# no = n\r\n"
                f" a b = p.m:o [e] \r\n[{GROUP}.x]\r\nno = n\r\n[{GROUP}]\r\nc=p=q\r\n"
            },
            ["a b", "c"],
        ),
        ({"first/a-1.dist-info": f"x = {GROUP}\n[x]\n{GROUP} = {GROUP}\n"}, []),
    ],
)
def test_entry_points_are_those_of_importlib(
    packages: Mapping[str, str], names: list[str], path: Path
) -> None:
    install(path, packages)
    found = described(installed(GROUP))
    assert found == described(entry_points(group=GROUP))
    assert [name for name, *_ in found] == names


def test_entry_points_of_unreadable_metadata_are_none(path: Path) -> None:
    (path / "first" / "old-1.egg-info").write_text("a file, as distutils wrote it")
    (path / "first" / "bare-1.dist-info").mkdir()
    assert described(installed(GROUP)) == []


def test_entry_points_are_found_in_zip_files_and_eggs(path: Path) -> None:
    install(path / "egg", {"EGG-INFO.x-1": PLAIN})
    egg = path / "packed-1.egg"
    egg.mkdir()
    (path / "egg" / "EGG-INFO.x-1").rename(egg / "EGG-INFO")
    sys.path.append(str(egg))
    assert [name for name, *_ in described(installed(GROUP))] == ["one"]
    with zipfile.ZipFile(path / "packed.zip", "w") as file:
        file.writestr("z-1.dist-info/METADATA", METADATA.format(name="z", version="1"))
        file.writestr("z-1.dist-info/entry_points.txt", PLAIN)
    sys.path[-1] = str(path / "packed.zip")
    assert [dist for *_, dist, _ in described(installed(GROUP))] == ["z"]


def test_entry_points_of_another_finder_are_found(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(path / "elsewhere", {"a-1.dist-info": PLAIN})

    class Finder(DistributionFinder):
        def find_spec(self, *_: object) -> None:
            return None

        def find_distributions(self, context: object = None) -> list[Distribution]:
            return [Distribution.at(path / "elsewhere" / "a-1.dist-info")]

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert [name for name, *_ in described(installed(GROUP))] == ["one"]


@pytest.mark.parametrize(
    ("value", "loaded"),
    [
        ("sys", sys),
        ("importlib.metadata:Distribution.at", Distribution.at),
        (" sys : maxsize [extra]", sys.maxsize),
    ],
)
def test_entry_point_loads_what_it_names(value: str, loaded: object, path: Path) -> None:
    install(path, {"first/a-1.dist-info": f"[{GROUP}]\none = {value}\n"})
    (point,) = installed(GROUP)
    assert point.load() == loaded
