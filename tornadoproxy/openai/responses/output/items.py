"""The items of a response's output: their places, and the events of their beginnings and ends.

Source: https://platform.openai.com/docs/api-reference/responses/object (``output``)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.output.events import EventWriter


class Place(NamedTuple):
    """The place of an item in the output, and its id."""

    number: int
    id: str

    @property
    def fields(self) -> Json:
        """The fields that name the item in an event."""
        return {"item_id": self.id, "output_index": self.number}


class Items:
    """The items of one response, of which some are not done.

    :param stem: what the ids of the items have in common.
    :param events: writes the events.
    """

    def __init__(self, stem: str, events: EventWriter) -> None:
        self.events = events
        self._stem = stem
        self._items: list[Json | None] = []  # None is not done

    @property
    def finished(self) -> list[Json]:
        """The items that are done."""
        return [item for item in self._items if item is not None]

    def place(self, prefix: str) -> Place:
        """Return the place of a new item, whose id begins with `prefix`."""
        index = len(self._items)
        self._items.append(None)
        return Place(index, f"{prefix}_{self._stem}{index}")

    def begin(self, place: Place, item: Json) -> bytes:
        """Return the event for an item that begins."""
        if self.events.is_silent:
            return b""
        fields = {"output_index": place.number, "item": item}
        return self.events.event("response.output_item.added", fields)

    def finish(self, place: Place, item: Json) -> bytes:
        """Take an item that is done; return the event for it."""
        self._items[place.number] = item
        if self.events.is_silent:
            return b""
        fields = {"output_index": place.number, "item": item}
        return self.events.event("response.output_item.done", fields)


class Block:
    """A block of the upstream's that is open. This one becomes nothing; others derive from it."""

    def open(self) -> bytes:
        """Begin the block."""
        return b""

    def grow(self, delta: Json) -> bytes:
        """Add a delta of the upstream's."""
        return b""

    def close(self) -> bytes:
        """End the block."""
        return b""
