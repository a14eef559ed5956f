"""The settings of a process, from its command line, environment, ``.env`` file and plugins.

Plugins declare settings, and a setting decides which plugins are loaded. So ``DISABLED_PLUGINS`` is
read first and alone, then the plugins are loaded, then all settings are read. Misspelled names can
be found only at the end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tornadoproxy.config import command_line, env_file
from tornadoproxy.config.consistency import contradictions
from tornadoproxy.config.core_settings import CORE_SETTINGS, DISABLED_PLUGINS
from tornadoproxy.config.responses_settings import RESPONSES_STORE
from tornadoproxy.config.sources import Sources
from tornadoproxy.errors import ConfigurationError
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tornadoproxy.config.command_line import Arguments, OwnParser
    from tornadoproxy.config.setting import Setting
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.hookspecs import OpenDatabase
    from tornadoproxy.storage.contract import DatabaseLocation

_logger = logging.getLogger(__name__)


class Configuration(Struct, frozen=True):
    """The command line and the environment of a process.

    :param arguments: the command line after the program's name.
    :param environment: the environment, which no other code reads.
    :param own: the parser of the command's own arguments; ``None`` if it is not known yet.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    own: OwnParser | None = None

    __repr__ = object.__repr__  # a field may hold a credential

    def command(self) -> str:
        """Return the word that names the command, which may not exist."""
        return command_line.command(self.arguments)

    def command_line(
        self, *plugin_settings: Setting[Any], own: OwnParser | None = None
    ) -> Arguments:
        """Parse the command line, with the flags of the core and of `plugin_settings`.

        :param own: the parser of the command's own arguments, in place of the attribute `own`.
        """
        return command_line.read(
            self.arguments, (*CORE_SETTINGS, *plugin_settings), own or self.own
        )

    def disabled(self) -> tuple[str, ...]:
        """Return the names of the plugins that must not be imported.

        :raises ConfigurationError: the ``.env`` file, which may name them, is faulty.
        """
        sources = self._sources(command_line.read(self.arguments, CORE_SETTINGS))
        if sources.env_file.faults:
            raise ConfigurationError(*sources.env_file.faults)
        return sources.read((DISABLED_PLUGINS,))[DISABLED_PLUGINS]

    def load(self) -> tuple[Plugins, Settings]:
        """Load the plugins and read all settings.

        :raises ConfigurationError: with every fault of either.
        """
        try:
            plugins = Plugins.load(self.disabled())
        except ConfigurationError as error:
            # the core's own settings can be validated all the same
            more = self._core_faults()
            raise ConfigurationError(*dict.fromkeys((*error.faults, *more))) from None
        return plugins, self.settings(plugins)

    def settings(self, plugins: Plugins, arguments: Arguments | None = None) -> Settings:
        """Read all settings, those of `plugins` included, from their present sources.

        :param arguments: the command line, if a command's own parser has parsed it.
        :raises ConfigurationError: with every fault.
        """
        declared = (*CORE_SETTINGS, *plugins.declared_settings())
        if arguments is None:
            arguments = self.command_line(*plugins.declared_settings())
        sources = self._sources(arguments)
        faults = (
            *arguments.faults,
            *sources.env_file.faults,
            *sources.misspelled(declared),
        )
        try:
            settings = sources.read(declared)
        except ConfigurationError as error:
            raise ConfigurationError(*faults, *error.faults) from None
        if faults:
            raise ConfigurationError(*faults)
        return settings

    def sources(self, plugins: Plugins) -> Sources:
        """Return the sources of the core's and the plugins' settings."""
        return self._sources(self.command_line(*plugins.declared_settings()))

    def _sources(self, arguments: Arguments) -> Sources:
        values = env_file.read(arguments.env_file, required=arguments.env_file_named)
        return Sources(arguments.flags, self.environment, values)

    def _core_faults(self) -> tuple[str, ...]:
        try:
            self._sources(self.command_line()).read(CORE_SETTINGS)
        except ConfigurationError as error:
            return error.faults
        return ()


def warn(sources: Sources, plugins: Plugins) -> None:
    """Log probable mistakes in the sources of the settings."""
    plugins.warnings = tuple(sources.warnings((*CORE_SETTINGS, *plugins.declared_settings())))
    for line in plugins.warnings:
        _logger.warning(line)


def configure(plugins: Plugins, settings: Settings) -> tuple[tuple[str, str], ...]:
    """Check that `settings` are consistent, and pass them to the plugins.

    :return: for each plugin that reports its configuration: its name and the line.
    :raises ConfigurationError: with every fault of the core's and the plugins'.
    """
    faults = (*contradictions(settings), *_faults_of_store(settings))
    try:
        lines = plugins.configure(settings)
    except ConfigurationError as error:
        raise ConfigurationError(*faults, *error.faults) from None
    if faults:
        raise ConfigurationError(*faults)
    return lines


def databases(
    plugins: Plugins, settings: Settings
) -> tuple[tuple[str, str, DatabaseLocation | None, OpenDatabase], ...]:
    """Return the databases of the plugins, and that of responses, as if of a plugin.

    :return: the plugin's name, the setting's name and its value, and how to make a `Database`.
    :raises ConfigurationError: with the faults of all plugins.
    """
    # most commands open no database
    from tornadoproxy.handlers.openai.database_store import NAME, database

    where = settings[RESPONSES_STORE]
    return (
        (NAME, RESPONSES_STORE.name, None if isinstance(where, str) else where, database),
        *(
            (plugin, setting.name, settings[setting], made)
            for plugin, setting, made in plugins.databases()
        ),
    )


def _faults_of_store(settings: Settings) -> tuple[str, ...]:
    where = settings[RESPONSES_STORE]
    if isinstance(where, str):
        return ()
    from tornadoproxy.handlers.openai.database_store import database

    try:
        database(where).check()
    except ConfigurationError as error:
        return error.faults
    return ()
