"""The files: ``2026-11-30/081500.123456-req_abc.json`` is an exchange that began then, in UTC."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Document = dict[str, Any]  # Any: JSON

_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")


def write(directory: Path, document: Document) -> None:
    """Write an exchange to a file, which is whole once it has its name.

    :raises OSError: it cannot be written.
    """
    record = document["record"]
    began = datetime.fromtimestamp(record["time"], UTC)
    day = directory / began.date().isoformat()
    day.mkdir(mode=0o700, exist_ok=True)
    # an upstream chooses its ids
    name = f"{began:%H%M%S.%f}-{_NOT_IN_A_NAME.sub('_', record['request_id'])[:100]}"
    draft = day / f".{name}.{os.getpid()}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8", errors="replace") as file:
            json.dump(document, file, ensure_ascii=False)
        names = (f"{name}{f'.{again}' if again else ''}.json" for again in itertools.count())
        for path in map(day.joinpath, names):
            with suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename, it replaces no other
                break
    finally:
        draft.unlink(missing_ok=True)


def newest_first(directory: Path) -> Iterator[Path]:
    """Yield the files of all exchanges."""
    days = sorted((each for each in directory.iterdir() if _DAY.fullmatch(each.name)), reverse=True)
    for day in days:
        yield from sorted(day.glob("[!.]*.json"), reverse=True)


def find(directory: Path, beginning: str) -> list[Path]:
    """Return the files of the exchanges whose request id begins so, the newest first."""
    beginning = _NOT_IN_A_NAME.sub("_", beginning)
    return [
        path
        for path in newest_first(directory)
        if path.name.partition("-")[2].removesuffix(".json").startswith(beginning)
    ]


def read(path: Path) -> Document:
    """Return an exchange.

    :raises OSError: it cannot be read.
    :raises ValueError: it is none.
    """
    document: Document = json.loads(path.read_text("utf-8"))
    try:
        float(document["record"]["time"])
    except (KeyError, TypeError):
        raise ValueError("it is no record") from None
    return document


def delete_before(directory: Path, oldest: date) -> None:
    """Delete the exchanges of the days before `oldest`.

    :raises OSError: one cannot be deleted.
    """
    for day in directory.iterdir():
        if _DAY.fullmatch(day.name) and day.name < oldest.isoformat():
            shutil.rmtree(day)
