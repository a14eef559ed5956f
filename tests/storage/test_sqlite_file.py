"""SQLite files of plugins in commands: creation, schema, errors, reading."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from storage.conftest import SCHEMA, WORDS, insert, locked, numbers_in

from tornadoproxy import ConfigurationError, Database, DatabaseConnection

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root has all permissions")


def contents(directory: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in directory.iterdir() if each.is_file()}


def refusal(path: Path, schema: tuple[str, ...] = SCHEMA) -> str:
    """Return why the file cannot be opened."""
    with pytest.raises(ConfigurationError) as caught:
        Database(path, schema, name="test").open()
    (line,) = caught.value.faults
    assert "\n" not in line
    start = f"the database {path} of test cannot be used: "
    assert line.startswith(start)
    return line.removeprefix(start)


def test_file_is_created_for_its_owner_alone(path: Path) -> None:
    with Database(path, SCHEMA, name="test") as opened, opened.transaction() as connection:
        connection.execute("INSERT INTO numbers VALUES (1)")
        created = [path, *path.parent.glob("test.db-*")]
        assert len(created) == 3
        assert {stat.S_IMODE(each.stat().st_mode) for each in created} == {0o600}


@pytest.mark.parametrize("name", ["a b?mode=ro#x%41&.db", "größe.db", os.fsdecode(b"\xff.db")])
def test_file_may_have_any_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    insert(tmp_path / name, 1)
    insert(Path(name), 2)
    assert numbers_in(tmp_path / name) == [1, 2]
    assert os.listdir(tmp_path) == [name]


def test_several_processes_may_create_it_at_once(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tornadoproxy import Database\n"
        "with Database(Path(sys.argv[1]), ['CREATE TABLE numbers (number)'], name='test') as d:\n"
        "    with d.transaction() as c: c.execute('INSERT INTO numbers VALUES (1)')"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script, path]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0] * 3
    assert numbers_in(path) == [1] * 3


async def test_two_plugins_write_to_a_file_at_once(path: Path) -> None:
    def insert_into(tables: Sequence[str], connection: DatabaseConnection) -> None:
        connection.executemany(f"INSERT INTO {tables[0]} VALUES (1)", [()] * len(tables))

    names = ("numbers", "words")
    plugins = [Database(path, [f"CREATE TABLE {name} (item);"], name=name) for name in names]
    for each in plugins:
        await each.start()
    for number in range(100):
        for name, each in zip(names, plugins, strict=True):
            each.write_behind(insert_into, name)
            if number % 20 == 0:
                await each.run(lambda connection: connection.execute("SELECT 1"))
    for each in plugins:
        await each.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for name in names:
            assert connection.execute(f"SELECT count(*) FROM {name}").fetchone() == (100,)


# -- files that cannot be used


@pytest.fixture
def unusable(memory_path: Path) -> Path:
    """A directory with paths that no database can be at."""
    (memory_path / "file").touch()
    os.mkfifo(memory_path / "pipe")
    (memory_path / "link").symlink_to("nowhere")
    (memory_path / "notes.txt").write_bytes(b"not a database\n" * 100)
    for name in ("corrupt.db", "read-only.db"):
        insert(memory_path / name, 1)
    (memory_path / "read-only.db").chmod(0o400)
    content = bytearray((memory_path / "corrupt.db").read_bytes())
    content[100:3000] = b"\xff" * 2900  # the page of the schema, behind the header of the file
    (memory_path / "corrupt.db").write_bytes(content)
    (memory_path / "closed").mkdir(mode=0o500)
    return memory_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "it is a directory: name a file in it"),
        ("file/test.db", "{}/file is not a directory: name another path"),
        ("pipe", "it is not a regular file: name another path"),
        ("x" * 300, "it cannot be reached: File name too long"),
        (
            "link",
            "it cannot be opened: permit the proxy's user to read and write it and its directory",
        ),
        (
            "nowhere/test.db",
            "the directory {}/nowhere does not exist: create it, or correct the path",
        ),
        ("notes.txt", "it is not an SQLite database: name another file, or restore a backup"),
        ("corrupt.db", "it is corrupt: stop the proxy and restore a backup"),
        pytest.param(
            "closed/new.db",
            "the proxy's user cannot write to {}/closed: permit it",
            marks=needs_permissions,
        ),
        pytest.param(
            "read-only.db",
            "access is denied: permit the proxy's user to read and write it",
            marks=needs_permissions,
        ),
    ],
)
def test_unusable_path_is_refused_and_left_alone(unusable: Path, name: str, reason: str) -> None:
    before = contents(unusable)
    assert refusal(unusable / name) == reason.format(unusable)
    assert contents(unusable) == before


def test_file_that_a_command_creates_must_exist(path: Path) -> None:
    database = Database(path, SCHEMA, name="test")
    with pytest.raises(ConfigurationError, match="it does not exist; `test create` creates it"):
        database.check(created_by="test create")
    insert(path, 1)
    database.check(created_by="test create")


def test_locked_file_is_refused_once_it_must_be_written(path: Path, short_timeouts: None) -> None:
    insert(path, 1)
    told = "it is locked by another program: end that program's transaction"
    with locked(path):
        assert refusal(path, (*SCHEMA, WORDS)) == told
        with Database(path, SCHEMA, name="test") as opened:
            with pytest.raises(ConfigurationError) as caught, opened.transaction():
                pass
            assert caught.value.faults[0].endswith(told)


def test_reader_sees_one_moment_while_others_write(path: Path) -> None:
    insert(path, 1)
    query = "SELECT number FROM numbers"
    with Database(path, SCHEMA, name="test").reading() as connection:
        assert connection.execute(query).fetchall() == [(1,)]
        insert(path, 2)
        assert connection.execute(query).fetchall() == [(1,)]
    with locked(path), Database(path, SCHEMA, name="test").reading() as connection:
        assert connection.execute(query).fetchall() == [(1,), (2,)]


def test_reader_cannot_write(path: Path) -> None:
    insert(path, 1)
    reader = Database(path, SCHEMA, name="test")
    with pytest.raises(ConfigurationError, match="it cannot be written"), reader.reading() as found:
        found.execute("INSERT INTO numbers VALUES (2)")
    assert numbers_in(path) == [1]


def test_reader_creates_no_file(path: Path) -> None:
    reader = Database(path, SCHEMA, name="test", setting="TEST_DB")
    with pytest.raises(ConfigurationError) as caught, reader.reading():
        pass
    assert caught.value.faults == (
        f"TEST_DB={path} cannot be used: there is no such file: the proxy creates it when it "
        "starts",
    )
    assert not path.exists()
