"""The recorder: what passes between some clients and the proxy, each exchange in a file.

It is inactive without ``RECORD_DIR``. With it, requests and responses of ``RECORD_PRINCIPALS`` are
kept, prompts included, and the start says so. Credentials are not: their headers are left out, and
``RECORD_REDACT`` replaces whatever else must not be kept. ``python -m tornadoproxy records`` lists
and shows what was recorded, and sends it again.

The event loop only collects the pieces. A thread decodes, redacts and writes them, behind a bounded
queue: a slow disk costs records, but delays no request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tornadoproxy import (
    INACTIVE,
    Command,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    Observer,
    RequestRecord,
    Setting,
    Settings,
    hookimpl,
    parsers,
)
from tornadoproxy_recorder.capture import Capture, Exchange
from tornadoproxy_recorder.writer import Writer

EVERYBODY = "*"
SWEEP_INTERVAL = 3600.0  # seconds between two searches for expired records
FLUSH_TIMEOUT = 4.0  # seconds that a shutdown waits for the disk

# The APIs of the upstream, and not the pages of plugins, which may show keys.
_RECORDED = re.compile(r"/(v1/(?!organizations/)|openai/)").match

_logger = logging.getLogger(__name__)


def _rules(value: str) -> tuple[re.Pattern[str], ...]:
    """Parse regular expressions, separated by blanks."""
    rules = []
    for text in value.split():
        try:
            rule = re.compile(text)
        except re.error as error:
            raise ValueError(f"must be regular expressions, not {text!r}: {error}") from None
        if rule.search(""):
            raise ValueError(f"must not match an empty text, as {text!r} does")
        rules.append(rule)
    return tuple(rules)


RECORD_DIR: Setting[Path | None] = Setting(
    "RECORD_DIR",
    parsers.path,
    default=None,
    help=(
        "directory for recorded requests and responses, prompts included, with mode 0700. "
        "Without it, nothing is recorded."
    ),
    fixed=True,
)
RECORD_PRINCIPALS: Setting[tuple[str, ...]] = Setting(
    "RECORD_PRINCIPALS",
    parsers.words,
    default=(),
    help="principals whose requests are recorded; * records everybody's",
)
RECORD_RATE: Setting[float] = Setting(
    "RECORD_RATE",
    parsers.number(minimum=0, maximum=1),
    default=1.0,
    help="share of their requests that is recorded, 0 to 1",
)
RECORD_MAX_BODY: Setting[int] = Setting(
    "RECORD_MAX_BODY",
    parsers.size,
    default=1024 * 1024,
    help="bytes that are recorded of each body",
)
RECORD_REDACT: Setting[tuple[re.Pattern[str], ...]] = Setting(
    "RECORD_REDACT",
    _rules,
    default=(),
    help=(
        "regular expressions, separated by blanks, for what is replaced by [redacted] in bodies "
        "and header values. Write \\s for a blank."
    ),
)
RECORD_RETENTION_DAYS: Setting[int] = Setting(
    "RECORD_RETENTION_DAYS",
    parsers.integer(minimum=0),
    default=7,
    help="days after which records are deleted; 0 disables it",
)


class _Rules(NamedTuple):
    """The settings that a SIGHUP can change."""

    principals: tuple[str, ...] = ()
    rate: float = 1.0
    max_body: int = 0
    redact: tuple[re.Pattern[str], ...] = ()
    days: int = 0

    def describe(self, directory: Path) -> str:
        """Return what is recorded, of whom, where and for how long."""
        who = "everybody" if EVERYBODY in self.principals else ", ".join(self.principals)
        share = "" if self.rate == 1 else f"{self.rate:.3g} of "
        until = f"for {self.days} days" if self.days else "and never deleted"
        return f"prompts and responses of {share}{who} are RECORDED in {directory}, {until}"


class Recorder:
    """The plugin."""

    def __init__(self) -> None:
        self._directory = Path()
        self._rules = _Rules()
        self._writer: Writer | None = None
        self._sweeping: asyncio.Task[None] | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Any], ...]:  # Any: each has a type of its own
        return (
            RECORD_DIR,
            RECORD_PRINCIPALS,
            RECORD_RATE,
            RECORD_MAX_BODY,
            RECORD_REDACT,
            RECORD_RETENTION_DAYS,
        )

    @hookimpl
    def commands(self) -> list[Command]:
        from tornadoproxy_recorder import command  # only the command needs it

        text = "List, show and repeat recorded requests."
        run = partial(command.run, directory=RECORD_DIR)
        return [Command("records", text, command.add_arguments, run)]

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        directory = settings[RECORD_DIR]
        if directory is None:
            return INACTIVE
        _check(directory)
        rules = _Rules(
            principals=settings[RECORD_PRINCIPALS],
            rate=settings[RECORD_RATE],
            max_body=settings[RECORD_MAX_BODY],
            redact=settings[RECORD_REDACT],
            days=settings[RECORD_RETENTION_DAYS],
        )
        if not rules.principals:
            raise ConfigurationError(
                "RECORD_DIR is set without RECORD_PRINCIPALS: name whose requests are recorded, "
                "or set it to * for everybody's."
            )
        changed, self._rules = rules != self._rules, rules
        self._directory = directory
        if changed and self._writer is not None:
            self._warn()
        return rules.describe(directory)

    @hookimpl
    def startup(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"RECORD_DIR={self._directory} cannot be created: {error.strerror}; create it."
            ) from None
        self._writer = Writer(self._write)
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        self._warn()

    @hookimpl
    def observe(
        self, request: IncomingRequest, identity: Identity, credential_headers: frozenset[str]
    ) -> Observer | None:
        rules, writer = self._rules, self._writer
        if writer is None or not _RECORDED(request.path):
            return None
        if EVERYBODY not in rules.principals and identity.principal not in rules.principals:
            return None
        if rules.rate < 1 and random.random() >= rules.rate:  # noqa: S311  # a sample
            return None
        return Capture(request, credential_headers, rules.max_body, writer.put)

    @hookimpl
    async def shutdown(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeping
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close, FLUSH_TIMEOUT)

    def _warn(self) -> None:
        _logger.warning("%s", self._rules.describe(self._directory))

    def _write(self, exchange: Exchange, record: RequestRecord) -> None:
        """Write one exchange; called in the writer's thread."""
        from tornadoproxy_recorder import files, redaction

        rules = self._rules
        document = redaction.document_of(exchange, record, rules.max_body, rules.redact)
        files.write(self._directory, document)

    async def _sweep(self) -> None:
        """Delete expired records, now and every hour."""
        from tornadoproxy_recorder import files

        while True:
            if days := self._rules.days:
                oldest = datetime.now(UTC).date() - timedelta(days=days)
                try:
                    await asyncio.to_thread(files.delete_before, self._directory, oldest)
                except OSError as error:
                    _logger.warning("expired records are not deleted: %s", error)
            await asyncio.sleep(SWEEP_INTERVAL)


def _check(directory: Path) -> None:
    """Refuse a directory that others can read, or that cannot be written, without creating it."""
    try:
        mode = directory.stat().st_mode
    except FileNotFoundError:
        if not directory.parent.is_dir():
            raise ConfigurationError(
                f"RECORD_DIR={directory}: there is no directory {directory.parent}; create it."
            ) from None
        if not os.access(directory.parent, os.W_OK | os.X_OK):
            raise ConfigurationError(
                f"RECORD_DIR={directory} cannot be created: permission denied; create it."
            ) from None
        return
    except OSError as error:
        raise ConfigurationError(
            f"RECORD_DIR={directory} cannot be used: {error.strerror}; choose another."
        ) from None
    if not stat.S_ISDIR(mode):
        raise ConfigurationError(f"RECORD_DIR={directory} is not a directory; choose another.")
    if mode & 0o077:
        raise ConfigurationError(
            f"RECORD_DIR={directory} is open to other users of this machine; chmod it to 700."
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(
            f"RECORD_DIR={directory} cannot be written: permission denied; allow writing it."
        )
