"""How a plugin's failure is told: by its type and where it was raised, never by its text.

What a plugin raises may hold a credential in its text (``KeyError: 'sk-…'``). Only a plugin that
cannot be loaded is quoted: it has not been shown anything yet.
"""

from __future__ import annotations

import logging
import traceback

from tornadoproxy.errors import ConfigurationError

_logger = logging.getLogger(__name__)


class OurOwnError(Exception):
    """A plugin's failure that we found out, and whose text is ours."""


def held_the_loop(seconds: float, timeout: float) -> OurOwnError:
    """Return the failure of a plugin whose synchronous code ran for longer than it may."""
    return OurOwnError(f"it held the event loop for {seconds:.3g} s, PLUGIN_TIMEOUT is {timeout:g}")


class _WithheldError(Exception):
    """Stands in a log for an exception whose text is withheld; its own is the type's name."""


def faults_of(plugin: str, hook: str, error: BaseException) -> tuple[str, ...]:
    """What a plugin that raised `error` while the proxy starts is reported with."""
    if isinstance(error, ConfigurationError) and error.faults:
        return error.faults
    if isinstance(error, OurOwnError):
        return (f"plugin {plugin!r} failed in {hook}: {error}",)
    *_, last = traceback.extract_tb(error.__traceback__)
    return (
        f"plugin {plugin!r} failed in {hook}: {type(error).__name__} "
        f"in {last.filename}, line {last.lineno}",
    )


def log_now_and_then(message: str, count: int, plugin: str, error: BaseException) -> None:
    """Log at 1, 2, 4, 8 …: what fails for every request must not fill the disk."""
    if count & (count - 1) == 0:
        log_failure(f"{message} ({count} so far): %s", plugin, error)


def log_failure(message: str, plugin: str, error: BaseException) -> None:
    """Log `message`, made of the plugin's name and the type of `error`, and its traceback."""
    if isinstance(error, OurOwnError):
        _logger.error(message, plugin, error)
    else:
        _logger.error(message, plugin, type(error).__name__, exc_info=_withheld(error))


def _withheld(error: BaseException) -> _WithheldError:
    """`error` and what it came from, with their tracebacks and without their texts."""
    shown = _WithheldError(type(error).__name__).with_traceback(error.__traceback__)
    cause = error.__cause__ or error.__context__
    if cause is not None:
        shown.__cause__ = _WithheldError(type(cause).__name__).with_traceback(cause.__traceback__)
    return shown
