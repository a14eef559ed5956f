"""The commands of plugins."""

from __future__ import annotations

import argparse
import gc
import io
import os
import sys
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli.own_parser import OwnParser, own_parser
from tornadoproxy.config.command_line import setting_flags
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.failures import OurOwnError, discard, faults_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.command.commands import Command
    from tornadoproxy.plugin.loading.discovery import PluginInfo

BROKEN_PIPE = 141  # the status that a shell reports for SIGPIPE, 128 + 13


def parser_of(plugin: str, command: Command, declared: Iterable[Setting[Any]]) -> OwnParser:
    """Return the parser for the own arguments of `plugin`'s `command`.

    :param declared: all settings, whose flags the command must not define.
    :raises ConfigurationError: it defines one, or its parser cannot be made.
    """
    try:
        parser = own_parser(command.name, command.help, command.add_arguments)
    # a plugin may raise anything
    except Exception as error:
        raise _failed(plugin, command, error) from None
    reserved = setting_flags(declared)
    for flag in parser.flags():
        if flag in reserved:
            fault = OurOwnError(f"its flag {flag} is the program's or a setting's: rename it")
            raise _failed(plugin, command, fault)
    return parser


def validate(plugins: Iterable[PluginInfo]) -> None:
    """Check that the commands of `plugins` can be used.

    :raises ConfigurationError: a line for each fault.
    """
    plugins = tuple(plugins)
    declared = (*CORE_SETTINGS, *(setting for info in plugins for setting in info.settings))
    faults: list[str] = []
    for info in plugins:
        for command in info.commands:
            try:
                parser_of(info.name, command, declared)
            except ConfigurationError as error:
                faults += error.faults
    if faults:
        raise ConfigurationError(*faults)


def run(plugin: str, command: Command, own: argparse.Namespace, settings: Settings) -> int:
    """Run `plugin`'s `command` and return the exit status.

    :param own: its parsed arguments.
    :raises ConfigurationError: the command raised it about its input, or failed in another way.
    """
    gc.enable()
    try:
        status: object = command.run(own, settings)
    except BrokenPipeError:
        raise
    # a plugin may raise anything
    except Exception as error:
        raise _failed(plugin, command, error) from None
    if type(status) is int:
        return status
    discard(status)
    fault = OurOwnError(f"it must return the exit status, not a {type(status).__name__}")
    raise _failed(plugin, command, fault)


def with_standard_output(work: Callable[[], int]) -> int:
    """Return the result of `work` once ``sys.stdout`` is flushed.

    Characters that the encoding lacks are escaped, so that a name does not abort a list.

    :return: `BROKEN_PIPE`, without an error, if the reader has closed the pipe, as ``head`` does.
    :raises ConfigurationError: standard output cannot be written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        try:
            return work()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _write_nothing_more()
        return BROKEN_PIPE
    except OSError as error:
        _write_nothing_more()
        raise ConfigurationError(f"cannot write to standard output: {error.strerror}") from None


def _failed(plugin: str, command: Command, error: Exception) -> ConfigurationError:
    return ConfigurationError(*faults_of(plugin, f"its command {command.name}", error))


def _write_nothing_more() -> None:
    """Drop buffered output: Python would retry at exit, and print a traceback."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
