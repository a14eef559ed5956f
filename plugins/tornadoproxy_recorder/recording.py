"""What is recorded, of whom, where and for how long."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import stat
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy import ConfigurationError
from tornadoproxy_recorder import files, redaction
from tornadoproxy_recorder.capture import Capture, Exchange
from tornadoproxy_recorder.writer import Writer

if TYPE_CHECKING:
    from pathlib import Path

    from tornadoproxy import IncomingRequest, Observer, RequestRecord

EVERYBODY = "*"
SWEEP_INTERVAL = 3600.0  # seconds between two searches for expired records
FLUSH_TIMEOUT = 4.0  # seconds that a shutdown waits for the disk

# The APIs of the upstream, and not the pages of plugins, which may show keys.
_RECORDED = re.compile(r"/(v1/(?!organizations/)|openai/)").match

_logger = logging.getLogger(__name__)


class Rules(NamedTuple):
    """The settings that a SIGHUP can change."""

    principals: tuple[str, ...]
    rate: float
    max_body: int
    redact: tuple[re.Pattern[str], ...]
    days: int

    def describe(self, directory: Path) -> str:
        """Return what is recorded, of whom, where and for how long."""
        who = "everybody" if EVERYBODY in self.principals else ", ".join(self.principals)
        share = "" if self.rate == 1 else f"{self.rate:.3g} of "
        until = f"for {self.days} days" if self.days else "and never deleted"
        return f"prompts and responses of {share}{who} are RECORDED in {directory}, {until}"


class Recording:
    """The recording of one proxy.

    :ivar directory: where the files are.
    """

    def __init__(self, directory: Path, rules: Rules) -> None:
        self.directory = directory
        self._rules = rules
        self._writer: Writer | None = None
        self._sweeping: asyncio.Task[None] | None = None

    def use(self, rules: Rules) -> None:
        """Record by `rules` from now on."""
        changed, self._rules = rules != self._rules, rules
        if changed and self._writer is not None:
            self._warn()

    def start(self) -> None:
        """Create the directory, and begin to record.

        :raises ConfigurationError: it cannot be created.
        """
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"RECORD_DIR={self.directory} cannot be created: {error.strerror}; create it."
            ) from None
        self._writer = Writer(self._write)
        self._sweeping = asyncio.get_running_loop().create_task(self._sweep())
        self._warn()

    def observer(
        self, request: IncomingRequest, principal: str, hidden: frozenset[str]
    ) -> Observer | None:
        """Return who records a request; ``None`` if it is not recorded.

        :param hidden: the names of headers that are not kept.
        """
        rules, writer = self._rules, self._writer
        if writer is None or not _RECORDED(request.path):
            return None
        if EVERYBODY not in rules.principals and principal not in rules.principals:
            return None
        if rules.rate < 1 and random.random() >= rules.rate:  # noqa: S311  # a sample
            return None
        return Capture(request, hidden, rules.max_body, writer.put)

    async def stop(self) -> None:
        """Write what waits, and end."""
        assert self._sweeping is not None, "started"
        assert self._writer is not None, "started"
        self._sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await self._sweeping
        await asyncio.to_thread(self._writer.close, FLUSH_TIMEOUT)

    def _warn(self) -> None:
        _logger.warning("%s", self._rules.describe(self.directory))

    def _write(self, exchange: Exchange, record: RequestRecord) -> None:
        """Write one exchange; called in the writer's thread."""
        files.write(self.directory, redaction.document_of(exchange, record, self._rules.redact))

    async def _sweep(self) -> None:
        """Delete expired records, now and every hour."""
        while True:
            if days := self._rules.days:
                oldest = datetime.now(UTC).date() - timedelta(days=days)
                try:
                    await asyncio.to_thread(files.delete_before, self.directory, oldest)
                except OSError as error:
                    _logger.warning("expired records are not deleted: %s", error)
            await asyncio.sleep(SWEEP_INTERVAL)


def check(directory: Path) -> None:
    """Refuse a directory that others can read, or that cannot be written, without creating it.

    :raises ConfigurationError: it is one of these.
    """
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
