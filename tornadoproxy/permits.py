"""Keeps what authorizers granted one request until it is over, and tells them once that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.authorization import Permit

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.exchange import RequestRecord


class Permits:
    """The permits of one request.

    :param failed: told the plugin's name, the hook's, and what it raised.
    :ivar withheld_headers: prefixes, in lower case, of the upstream's headers that do not go to
        the client.
    """

    __slots__ = ("_failed", "_record", "_settlements", "withheld_headers")

    def __init__(self, failed: Callable[[str, str, BaseException], None]) -> None:
        self._failed = failed
        self._settlements: list[tuple[str, Callable[[RequestRecord], None]]] = []
        self._record: RequestRecord | None = None
        self.withheld_headers: tuple[str, ...] = ()

    def add(self, plugin: str, answer: object) -> bool:
        """Keep what `plugin` answered, if it is a permit; return whether it is.

        If the request is over already, it is settled at once.
        """
        if type(answer) is not Permit:
            return False
        self.withheld_headers += answer.withheld_headers
        if answer.settle is None:
            return True
        if self._record is None:
            self._settlements.append((plugin, answer.settle))
        else:
            self._settle(plugin, answer.settle, self._record)
        return True

    def settle(self, record: RequestRecord) -> None:
        """Tell that the request is over. Never raises."""
        self._record = record
        for plugin, settle in self._settlements:
            self._settle(plugin, settle, record)
        self._settlements.clear()

    def _settle(
        self, plugin: str, settle: Callable[[RequestRecord], None], record: RequestRecord
    ) -> None:
        try:
            settle(record)
        except BaseException as error:
            self._failed(plugin, "settle", error)
