"""The recorder: what passes between some clients and the proxy, each exchange in a file.

It is inactive without ``RECORD_DIR``. With it, requests and responses of ``RECORD_PRINCIPALS`` are
kept, prompts included, and the start says so. Credentials are not: their headers are left out, and
``RECORD_REDACT`` replaces whatever else must not be kept. ``python -m tornadoproxy records`` lists
and shows what was recorded, and sends it again.

The event loop only collects the pieces. A thread decodes, redacts and writes them, behind a bounded
queue: a slow disk costs records, but delays no request.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tornadoproxy import (
    INACTIVE,
    Command,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from pathlib import Path

    from tornadoproxy import Observer, admin
    from tornadoproxy_recorder.recording import Recording


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


class Recorder:
    """The plugin. What it needs is loaded once it is active."""

    def __init__(self) -> None:
        self._recording: Recording | None = None

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
        text = "List, show and repeat recorded requests."
        return [Command("records", text, _add_arguments, _run)]

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        directory = settings[RECORD_DIR]
        if directory is None:
            return INACTIVE
        from tornadoproxy_recorder.recording import Recording, Rules, check

        check(directory)
        rules = Rules(
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
        if self._recording is None:
            self._recording = Recording(directory, rules)
        else:
            self._recording.use(rules)
        return rules.describe(directory)

    @hookimpl
    def admin_api(self) -> admin.Api:
        from tornadoproxy_recorder.api import RecordingsApi  # few proxies serve the Admin API

        assert self._recording is not None, "configured"
        return RecordingsApi(self._recording.directory).api()

    @hookimpl
    def startup(self) -> None:
        assert self._recording is not None, "configured"
        self._recording.start()

    @hookimpl
    def observe(
        self, request: IncomingRequest, identity: Identity, credential_headers: frozenset[str]
    ) -> Observer | None:
        assert self._recording is not None, "configured"
        return self._recording.observer(request, identity.principal, credential_headers)

    @hookimpl
    async def shutdown(self) -> None:
        assert self._recording is not None, "configured"
        await self._recording.stop()


def _add_arguments(parser: ArgumentParser) -> None:
    from tornadoproxy_recorder import command

    command.add_arguments(parser)


def _run(arguments: Namespace, settings: Settings) -> int:
    from tornadoproxy_recorder import command

    return command.run(arguments, settings, RECORD_DIR)
