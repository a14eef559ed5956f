"""The line writer: no line is lost while there is room, and every dropped line is counted."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

import pytest

from tornadoproxy import LineWriter


class Pipe:
    """A pipe with room for 4096 bytes; further ones must be read."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4096)
        self._received: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def read_in_background(self) -> None:
        self._reader.start()

    def lines(self) -> list[bytes]:
        """All lines, once every writer has closed."""
        os.close(self.write_end)
        if not self._reader.ident:
            self._reader.start()
        self._reader.join()
        return b"".join(self._received).splitlines()

    def _read(self) -> None:
        while data := os.read(self.read_end, 65_536):
            self._received.append(data)
        os.close(self.read_end)


@pytest.fixture
def pipe() -> Pipe:
    return Pipe()


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[int], FileIO]]:
    """Opens one named pipe as often as needed: readers can close and open it again."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with ExitStack() as opened:

        def open_(flags: int) -> FileIO:
            fd = os.open(path, flags | os.O_NONBLOCK)
            os.set_blocking(fd, True)
            return opened.enter_context(FileIO(fd, "rb" if flags == os.O_RDONLY else "wb"))

        yield open_


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


def received(reader: FileIO, size: int = 65_536) -> bytes:
    """What is in the pipe; waits until there is something."""
    return reader.read(size) or b""


def reported(lines: list[bytes]) -> int:
    """How many dropped lines the notices among `lines` report."""
    notices = (re.fullmatch(rb"(\d+) lines were dropped: .*", line) for line in lines)
    return sum(int(notice[1]) for notice in notices if notice)


def writer_threads() -> int:
    return sum(thread.name == "linewriter" for thread in threading.enumerate())


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_of_several_threads_arrive_whole_and_in_order(pipe: Pipe, *, blocking: bool) -> None:
    os.set_blocking(pipe.write_end, blocking)
    writer = LineWriter(pipe.write_end)
    pipe.read_in_background()
    names = (b"a", b"b", b"c")

    def lines_of(name: bytes) -> list[bytes]:
        lines = [b"%s %03d " % (name, number) + name * 100 for number in range(500)]
        return [*lines, name * 20_000]

    def write(name: bytes) -> None:
        for line in lines_of(name):
            writer.write(line)

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close(timeout=30)
    lines = pipe.lines()
    for name in names:
        assert [line for line in lines if line.startswith(name)] == lines_of(name)
    assert len(lines) == 1_503
    assert writer.dropped == 0


def test_line_made_in_the_thread_arrives_unless_it_fails(pipe: Pipe) -> None:
    made_in = []

    def make() -> bytes:
        made_in.append(threading.current_thread().name)
        return b"made"

    def fail() -> bytes:
        raise RuntimeError("no line")

    writer = LineWriter(pipe.write_end)
    pipe.read_in_background()
    for line in (b"first", make, fail, b"last"):
        writer.write(line)
    writer.close(timeout=30)
    notice, *lines = pipe.lines()
    assert reported([notice]) == 1
    assert lines == [b"first", b"made", b"last"]
    assert made_in == ["linewriter"]
    assert writer.dropped == 1


def test_writes_to_pipe_hold_whole_lines() -> None:
    # in packet mode a read returns one write; those of more than PIPE_BUF bytes are split
    read_end, write_end = os.pipe2(os.O_DIRECT)
    writer = LineWriter(write_end)
    for _ in range(100):
        writer.write(b"x" * 150)
    writer.close()
    os.close(write_end)
    writes = list(iter(lambda: os.read(read_end, 65_536), b""))
    os.close(read_end)
    assert b"".join(writes) == (b"x" * 150 + b"\n") * 100
    assert all(write.endswith(b"\n") for write in writes)


def test_thread_exists_from_first_line_to_close(tmp_path: Path) -> None:
    before = writer_threads()
    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
        assert writer_threads() == before
        writer.write(b"one")
        writer.write(b"two")
        assert writer_threads() == before + 1
        writer.close()
        assert writer_threads() == before
        writer.close()
        writer.write(b"late")
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
    assert writer.dropped == 1


def test_descriptor_may_be_closed_by_its_owner(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
    # another file may get the same number
    with (tmp_path / "other").open("wb"):
        writer.write(b"line")
        writer.close()
    assert (tmp_path / "log").read_bytes() == b"line\n"
    assert (tmp_path / "other").read_bytes() == b""


def test_stalled_reader_costs_lines_that_are_reported(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, capacity=50)
    for number in range(1_000):
        writer.write(b"%04d " % number + b"x" * 200)
    # twenty are in the pipe, some in the thread, and fifty in the queue
    assert 0 < writer.dropped < 1_000
    pipe.read_in_background()
    writer.close(timeout=30)
    lines = pipe.lines()
    kept = [line for line in lines if line.endswith(b"x")]
    assert len(kept) + writer.dropped == 1_000
    assert kept == sorted(kept)
    assert all(len(line) == 205 for line in kept)
    assert reported(lines) == writer.dropped
    assert len(lines) < len(kept) + 20  # not a notice for each line


@pytest.mark.parametrize("blocking", [True, False])
def test_close_does_not_wait_for_stalled_reader(pipe: Pipe, *, blocking: bool) -> None:
    os.set_blocking(pipe.write_end, blocking)
    writer = LineWriter(pipe.write_end)
    for _ in range(100):
        writer.write(b"x" * 200)
    used = time.process_time()
    writer.close(timeout=0.2)
    assert time.process_time() - used < 0.05, "it waits busily"
    assert writer_threads() == 1
    # the rest is written when the reader goes on
    assert pipe.lines() == [b"x" * 200] * 100
    until(lambda: writer_threads() == 0)


def test_closed_pipe_costs_lines_until_it_is_read_again(fifo: Callable[[int], FileIO]) -> None:
    reader = fifo(os.O_RDONLY)
    writer = LineWriter(fifo(os.O_WRONLY).fileno())
    reader.close()
    for _ in range(3):
        writer.write(b"lost")
    until(lambda: writer.dropped == 3)
    reader = fifo(os.O_RDONLY)
    writer.write(b"kept")
    data = b""
    while data.count(b"\n") < 2:
        data += received(reader)
    notice, kept = data.splitlines()
    assert reported([notice]) == 3
    assert kept == b"kept"
    writer.write(b"no second notice")
    writer.close()
    assert received(reader) == b"no second notice\n"
    assert writer.dropped == 3


def test_half_a_line_is_ended_before_the_notice(fifo: Callable[[int], FileIO]) -> None:
    reader = fifo(os.O_RDONLY)
    write_end = fifo(os.O_WRONLY).fileno()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    writer = LineWriter(write_end, notice=lambda count: b'{"dropped":%d}' % count)
    writer.write(b"half " + b"x" * 6_000)
    beginning = received(reader, 5)
    reader.close()
    until(lambda: writer.dropped == 1)
    reader = fifo(os.O_RDONLY)
    rest = received(reader)
    writer.write(b"whole")
    writer.close()
    half, notice, whole = (beginning + rest + received(reader)).splitlines()
    assert half == b"half " + b"x" * (len(half) - 5)
    assert len(half) < 6_000
    assert notice == b'{"dropped":1}'
    assert whole == b"whole"


def test_close_wakes_an_idle_thread(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    writer.write(b"line")
    (thread,) = (each for each in threading.enumerate() if each.name == "linewriter")
    until(lambda: sys._current_frames()[thread.ident or 0].f_code.co_name == "_take")
    writer.close(timeout=10)
    assert not thread.is_alive()
    assert pipe.lines() == [b"line"]


def test_close_of_unused_writer_closes_the_descriptor(pipe: Pipe) -> None:
    LineWriter(pipe.write_end).close()
    assert pipe.lines() == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        LineWriter(pipe.write_end)


def test_lines_are_queued_while_no_thread_can_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_more)
            writer.write(b"one")
        writer.write(b"two")
        writer.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"
