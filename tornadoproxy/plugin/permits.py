"""Keeps what authorizers granted one request until it is over, and tells them once that it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.plugin.authorization import Permit

if TYPE_CHECKING:
    from collections.abc import Callable

    from tornadoproxy.plugin.request import RequestRecord

    Settle = Callable[[RequestRecord], None]
    Tell = Callable[[str, str, Settle, RequestRecord], None]


class Permits:
    """The permits of one request.

    :param tell: `Plugins.tell`, by which a permit's plugin learns that the request is over.
    :ivar withheld_headers: prefixes, in lower case, of the upstream's headers that do not go to
        the client.
    """

    __slots__ = ("_record", "_settlements", "_tell", "withheld_headers")

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._settlements: list[tuple[str, Settle]] = []
        self._record: RequestRecord | None = None
        self.withheld_headers: tuple[str, ...] = ()

    def add(self, plugin: str, answer: object) -> bool:
        """Keep what `plugin` answered, if it is a permit; return whether it is.

        If the request is over already, it is settled at once.
        """
        if not isinstance(answer, Permit):
            return False
        self.withheld_headers += answer.withheld_headers
        if answer.settle is None:
            return True
        if self._record is None:
            self._settlements.append((plugin, answer.settle))
        else:
            self._tell(plugin, "settle", answer.settle, self._record)
        return True

    def settle(self, record: RequestRecord) -> None:
        """Tell that the request is over. Never raises."""
        self._record = record
        for plugin, settle in self._settlements:
            self._tell(plugin, "settle", settle, record)
        self._settlements.clear()
