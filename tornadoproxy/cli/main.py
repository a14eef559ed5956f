"""The commands: `tornadoproxy.config.command_line.COMMANDS` and those of the plugins."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

from msgspec.structs import replace

from tornadoproxy.cli import banner
from tornadoproxy.config.command_line import COMMANDS, asks_for_help, unknown_command
from tornadoproxy.config.core_settings import CORE_SETTINGS, LOG_LEVEL, PORT
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.server.configuration import Configuration, configure, warn
from tornadoproxy.server.logs import logging_to
from tornadoproxy.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    from tornadoproxy.cli.own_parser import OwnParser
    from tornadoproxy.config.command_line import Arguments


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the command that `arguments`, those after the program's name, ask for.

    :return: the exit status: 0; 1 after a second stop signal; 2 for configuration errors, which are
        printed to standard error, a line each; or what a plugin's command returns.
    """
    try:
        return _run(Configuration(arguments, environment))
    except ConfigurationError as error:
        return _refuse(error)
    except KeyboardInterrupt:
        return 130


def _refuse(error: ConfigurationError) -> int:
    """Print the faults, a line each, and return the exit status."""
    # if standard error is closed, the status alone reports the error
    with contextlib.suppress(OSError):
        for fault in error.faults:
            _write(f"tornadoproxy: {' '.join(fault.splitlines())}", sys.stderr)
    return 2


def _run(configuration: Configuration) -> int:
    command = configuration.command()
    commands: dict[str, Callable[[Configuration], int]] = {
        "serve": _serve,
        "check": _check,
        "plugins": _plugins,
        "db": _databases,
        "token": _token,
        "codex-catalog": _codex_catalog,
        "demo": _demo,
        "help": _help,
        "version": _version,
    }
    if command not in commands:
        return _plugin_command(configuration, command)
    if command != "help":
        own = _own_parser(command, configuration.arguments)
        configuration = replace(configuration, own=own)
        configuration.command_line()  # prints help, whatever else is wrong
    return commands[command](configuration)


def _own_parser(command: str, arguments: Sequence[str]) -> OwnParser | None:
    """Return the parser of the core's `command`; ``None`` if nothing is left for it to parse."""
    if command not in ("check", "db", "plugins") and not asks_for_help(arguments):
        return None
    # imports argparse, which serving does without
    from tornadoproxy.cli.own_arguments import core_parser

    return core_parser(command, arguments)


def _help(configuration: Configuration) -> int:
    topic = next((word for word in configuration.arguments[1:2] if not word.startswith("-")), None)
    if topic not in (None, "settings"):
        words = [*configuration.arguments[1:], "--help"]
        return _run(Configuration(words, configuration.environment))
    from tornadoproxy.cli.help_text import commands_text, settings_text

    text = settings_text if topic else commands_text
    try:
        plugins = Plugins.load(configuration.disabled()).describe()
    except ConfigurationError:
        _print(text(()))
        _print("Plugins cannot be loaded: `python -m tornadoproxy check` shows why.")
    else:
        _print(text(plugins))
    return 0


def _version(configuration: Configuration) -> int:
    del configuration
    _print(f"tornadoproxy {__version__}")
    return 0


def _plugin_command(configuration: Configuration, word: str) -> int:
    # the core's commands start faster without it
    from tornadoproxy.cli import plugin_command

    plugins = Plugins.load(configuration.disabled())
    offered = {
        command.name: (info.name, command)
        for info in plugins.describe()
        for command in info.commands
    }
    if word not in offered:
        raise ConfigurationError(unknown_command(word, (*COMMANDS, *offered)))
    plugin, command = offered[word]
    declared = plugins.declared_settings()

    def work() -> int:
        own = plugin_command.parser_of(plugin, command, (*CORE_SETTINGS, *declared))
        arguments = configuration.command_line(*declared, own=own)
        settings = configuration.settings(plugins, arguments)
        return plugin_command.run(plugin, command, arguments.own, settings)

    return plugin_command.with_standard_output(work)


def _serve(configuration: Configuration) -> int:
    # the other commands start faster without it
    from tornadoproxy.server import runner

    plugins, settings = configuration.load()
    sources = configuration.sources(plugins)
    with logging_to(sys.stderr.fileno(), settings[LOG_LEVEL]) as writer:
        warn(sources, plugins)
        plugin_lines = configure(plugins, settings)

        def announce(port: int) -> None:
            facts = banner.facts(settings, port, plugin_lines, plugins)
            loop = ("event loop", runner.loop_name())
            token = banner.credential(settings, sources, plugins.declared_settings())
            for line in banner.banner(settings, port, (*facts, loop), banner.VARIABLE, *token):
                writer.write(line.encode())

        serving = runner.serve(
            settings,
            plugins,
            reload=lambda: configuration.settings(plugins),
            announce=announce,
        )
        return runner.run(_ended(serving))


async def _ended(serving: Coroutine[Any, Any, int]) -> int:  # Any: what it yields is the loop's
    """Return the result of `serving`; faults are printed before a plugin can delay the end."""
    try:
        return await serving
    except ConfigurationError as error:
        return _refuse(error)


def _demo(configuration: Configuration) -> int:
    # the other commands start faster without the scripted upstream
    from tornadoproxy.cli.demo import serve_demo
    from tornadoproxy.server import runner

    plugins, settings = configuration.load()
    with logging_to(sys.stderr.fileno(), settings[LOG_LEVEL]) as writer:
        warn(configuration.sources(plugins), plugins)
        return runner.run(_ended(serve_demo(configuration, plugins, settings, writer)))


def _check(configuration: Configuration) -> int:
    from tornadoproxy.cli.plugin_command import validate

    plugins, settings = configuration.load()
    with logging_to(sys.stderr.fileno(), settings[LOG_LEVEL]):
        warn(configuration.sources(plugins), plugins)
        plugin_lines = configure(plugins, settings)
        validate(plugins.describe())
        facts = banner.facts(settings, settings[PORT], plugin_lines, plugins)
        _print("\n".join(banner.aligned(facts)))
        if configuration.command_line().own.online:
            # without --online the check is faster
            from tornadoproxy.server.online_check import check_upstreams

            _print("\n".join(asyncio.run(check_upstreams(settings, plugins.upstreams))))
    return 0


def _plugins(configuration: Configuration) -> int:
    arguments = configuration.command_line()
    if "name" in arguments.own:
        return _new_plugin(arguments)
    from tornadoproxy.cli.plugin_command import validate
    from tornadoproxy.cli.plugin_listing import listing
    from tornadoproxy.plugin.loading.discovery import find

    form: str = arguments.own.format
    disabled = configuration.disabled()
    try:
        plugins = Plugins.load(disabled)
    except ConfigurationError:
        _print(listing(find(disabled).described(), None, form, configured=False).rstrip())
        raise
    sources, configured = None, False
    try:
        settings = configuration.settings(plugins)
        sources = configuration.sources(plugins)
        with logging_to(sys.stderr.fileno(), settings[LOG_LEVEL]):
            warn(configuration.sources(plugins), plugins)
            plugins.configure(settings)
        configured = True
        validate(plugins.describe())
    finally:
        _print(listing(plugins.describe(), sources, form, configured=configured).rstrip())
    return 0


def _databases(configuration: Configuration) -> int:
    from tornadoproxy.cli import databases
    from tornadoproxy.cli.plugin_command import with_standard_output

    plugins, settings = configuration.load()
    own = configuration.command_line(*plugins.declared_settings()).own
    return with_standard_output(lambda: databases.run(own, plugins, settings))


def _new_plugin(arguments: Arguments) -> int:
    from tornadoproxy.cli import new_plugin

    if arguments.faults:
        raise ConfigurationError(*arguments.faults)
    made = new_plugin.generate(arguments.own.name, arguments.own.directory)
    _print("\n".join(new_plugin.told(made)))
    return 0


def _token(configuration: Configuration) -> int:
    if len(configuration.arguments) > 1:
        raise ConfigurationError("token takes no flags: remove what follows it")
    import secrets

    _print(secrets.token_urlsafe(32))
    return 0


def _codex_catalog(configuration: Configuration) -> int:
    from tornadoproxy.cli.codex_catalog import catalog_text
    from tornadoproxy.server.listed_models import listed_models

    plugins, settings = configuration.load()
    with logging_to(sys.stderr.fileno(), settings[LOG_LEVEL]):
        configure(plugins, settings)
        models = asyncio.run(listed_models(settings, plugins))
    if not models:
        raise ConfigurationError(
            "the upstream lists no models: name them in CHAT_MODELS, such as "
            "'claude-opus-5-5=claude-opus-5-5'"
        )
    _print(catalog_text(models))
    return 0


def _print(line: str) -> None:
    try:
        _write(line, sys.stdout)
    except OSError as error:
        raise ConfigurationError(f"cannot write to standard output: {error.strerror}") from None


def _write(line: str, stream: TextIO) -> None:
    # unbuffered: Python would retry a failed write at exit, and print a traceback
    data = f"{line}\n".encode(stream.encoding, "backslashreplace")
    while data:
        data = data[os.write(stream.fileno(), data) :]
