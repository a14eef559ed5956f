"""The line writer: nothing lost while there is room, everything counted when there is not."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import threading
import time
from contextlib import ExitStack
from io import FileIO
from typing import TYPE_CHECKING

import pytest

from tornadoproxy import LineWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Pipe:
    """A pipe with room for 4096 bytes; whoever needs more must read."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 4096)
        self._received: list[bytes] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def read_in_background(self) -> None:
        self._reader.start()

    def lines(self) -> list[bytes]:
        """All that came, once every writer has closed."""
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
    """Opens one named pipe, as often as wanted: its readers can go and come back."""
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
        assert time.monotonic() < deadline, "it never came about"
        os.sched_yield()


def received(reader: FileIO, size: int = 65_536) -> bytes:
    """What is in the pipe; waits until there is something."""
    return reader.read(size) or b""


def told(lines: list[bytes]) -> int:
    """How many dropped lines the notices among `lines` tell of."""
    notices = (re.fullmatch(rb"(\d+) lines were dropped: .*", line) for line in lines)
    return sum(int(notice[1]) for notice in notices if notice)


def writer_threads() -> int:
    return sum(thread.name == "linewriter" for thread in threading.enumerate())


def test_lines_arrive_in_order(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    pipe.read_in_background()
    for number in range(5_000):
        writer.write(b"line %d" % number)
    writer.close(timeout=30)
    assert pipe.lines() == [b"line %d" % number for number in range(5_000)]
    assert writer.dropped == 0


def test_lines_can_be_made_by_the_writer(pipe: Pipe) -> None:
    """One that cannot be made is dropped, and told of; the others arrive."""
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
    assert told([notice]) == 1
    assert lines == [b"first", b"made", b"last"]
    assert made_in == ["linewriter"]
    assert writer.dropped == 1


def test_lines_of_several_threads_arrive_whole(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    pipe.read_in_background()

    def write(name: bytes) -> None:
        for number in range(500):
            writer.write(b"%s %d " % (name, number) + name * 100)

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close(timeout=30)
    expected = [b"%s %d " % (n, i) + n * 100 for n in (b"a", b"b", b"c") for i in range(500)]
    assert sorted(pipe.lines()) == sorted(expected)


def test_a_pipe_gets_whole_lines_in_writes_that_stay_whole() -> None:
    # in packet mode a read returns one write; those of more than PIPE_BUF bytes come in pieces
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


def test_there_is_no_thread_before_the_first_line_and_after_the_end(tmp_path: Path) -> None:
    before = writer_threads()
    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
        assert writer_threads() == before
        writer.write(b"one")
        writer.write(b"two")
        assert writer_threads() == before + 1
        writer.close()
    assert writer_threads() == before
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_the_descriptor_may_be_closed_by_its_owner_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
    # whoever gets the number next must not get the lines
    with (tmp_path / "other").open("wb"):
        writer.write(b"line")
        writer.close()
    assert (tmp_path / "log").read_bytes() == b"line\n"
    assert (tmp_path / "other").read_bytes() == b""


def test_a_stuck_reader_costs_lines_which_are_counted_and_told_of(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end, capacity=50)
    for number in range(1_000):
        writer.write(b"%04d " % number + b"x" * 200)
    # the pipe takes twenty of them, one lot is in the thread's hands, and fifty wait
    assert 0 < writer.dropped < 1_000
    pipe.read_in_background()
    writer.close(timeout=30)
    lines = pipe.lines()
    kept = [line for line in lines if line.endswith(b"x")]
    assert len(kept) + writer.dropped == 1_000
    assert kept == sorted(kept)
    assert all(len(line) == 205 for line in kept)
    assert told(lines) == writer.dropped
    assert len(lines) < len(kept) + 20  # a notice for each lot, not for each line


@pytest.mark.parametrize("blocking", [True, False])
def test_closing_does_not_wait_for_a_stuck_reader(pipe: Pipe, *, blocking: bool) -> None:
    os.set_blocking(pipe.write_end, blocking)
    writer = LineWriter(pipe.write_end)
    for _ in range(100):
        writer.write(b"x" * 200)
    used = time.process_time()
    writer.close(timeout=0.5)
    assert time.process_time() - used < 0.05, "it waits busily"
    assert writer_threads() == 1
    # what was left behind still goes out if the reader comes to life
    assert pipe.lines() == [b"x" * 200] * 100
    until(lambda: writer_threads() == 0)


def test_a_descriptor_that_is_not_in_blocking_mode_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    writer = LineWriter(pipe.write_end)
    for number in range(200):
        writer.write(b"%03d " % number + b"x" * 200)
    writer.write(b"long " + b"y" * 20_000)
    pipe.read_in_background()
    writer.close(timeout=30)
    *short, long = pipe.lines()
    assert short == [b"%03d " % number + b"x" * 200 for number in range(200)]
    assert long == b"long " + b"y" * 20_000
    assert writer.dropped == 0


def test_a_closed_pipe_costs_lines_only_until_somebody_reads_again(
    fifo: Callable[[int], FileIO],
) -> None:
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
    assert told([notice]) == 3
    assert kept == b"kept"
    writer.write(b"what was told is not told again")
    writer.close()
    assert received(reader) == b"what was told is not told again\n"
    assert writer.dropped == 3


def test_half_a_line_gets_its_end_before_the_notice(fifo: Callable[[int], FileIO]) -> None:
    reader = fifo(os.O_RDONLY)
    write_end = fifo(os.O_WRONLY).fileno()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    writer = LineWriter(write_end)
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
    assert told([notice]) == 1
    assert whole == b"whole"


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        writer = LineWriter(full.fileno())
        for _ in range(100):
            writer.write(b"line")
        writer.close()
    assert writer.dropped == 100
    assert writer_threads() == 0


def test_the_notice_may_have_a_form_of_its_own(fifo: Callable[[int], FileIO]) -> None:
    reader = fifo(os.O_RDONLY)
    writer = LineWriter(fifo(os.O_WRONLY).fileno(), notice=lambda count: b'{"dropped":%d}' % count)
    reader.close()
    writer.write(b"lost")
    until(lambda: writer.dropped == 1)
    reader = fifo(os.O_RDONLY)
    writer.write(b"{}")
    writer.close()
    assert received(reader) == b'{"dropped":1}\n{}\n'


def test_closing_wakes_a_writer_that_has_nothing_to_do(pipe: Pipe) -> None:
    writer = LineWriter(pipe.write_end)
    writer.write(b"line")
    (thread,) = (each for each in threading.enumerate() if each.name == "linewriter")

    def waits_for_lines() -> bool:
        return sys._current_frames()[thread.ident or 0].f_code.co_name == "_take"

    until(waits_for_lines)
    writer.close(timeout=10)
    assert not thread.is_alive()
    assert pipe.lines() == [b"line"]


def test_lines_after_the_end_are_counted_as_dropped(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LineWriter(file.fileno())
        writer.write(b"line")
        writer.close()
        writer.close()
        writer.write(b"late")
    assert writer.dropped == 1
    assert (tmp_path / "log").read_bytes() == b"line\n"


def test_a_writer_that_was_never_used_lets_its_descriptor_go(pipe: Pipe) -> None:
    LineWriter(pipe.write_end).close()
    # the reader would wait for ever if a writer had kept the pipe open
    assert pipe.lines() == []


def test_lines_wait_while_no_thread_can_be_had(
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


def test_a_descriptor_that_is_not_open_is_refused_at_once(pipe: Pipe) -> None:
    assert pipe.lines() == []
    with pytest.raises(OSError, match="Bad file descriptor"):
        LineWriter(pipe.write_end)
