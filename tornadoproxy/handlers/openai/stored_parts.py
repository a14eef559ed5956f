"""A response in the parts in which stores keep it, each as JSON.

Clients that keep no state send all earlier items again with each turn, and the same tools: stored
whole, a conversation would take space in the square of its length. Therefore stores keep equal
parts of one principal once. Items are kept as they were sent: one without an id gets its id when it
is listed, see `responses.made_id`, since random ids would make equal items differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.handlers.openai.response_store import Stored
from tornadoproxy.openai import reading
from tornadoproxy.protocol import json_codec
from tornadoproxy.protocol.request_fields import MAX_MESSAGE_BODY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tornadoproxy.openai.reading import Json

MAX_LINKS = 5_000
"""The most responses that continue one another."""

# The fields of a response object, besides its output, that differ from turn to turn. All others
# repeat what a client sends with each turn, or are constant.
_OWN = (
    "id",
    "created_at",
    "completed_at",
    "status",
    "error",
    "incomplete_details",
    "usage",
    "previous_response_id",
    "metadata",
)


# of many: objects that the garbage collector need not look at
class Part(Struct, frozen=True, gc=False):
    """A part of a response, which other responses may have as well.

    :param id: the item's id; ``None`` for what has none.
    :param body: the item without its id, or the fields of a response object.
    """

    id: str | None
    body: bytes


class Parts(Struct, frozen=True, gc=False):
    """A response in its parts.

    :param own: the fields of the response object that no other response has.
    :param shared: the fields that other responses are likely to have as well.
    :param items: its input items, then its output items.
    :param inputs: how many of `items` are input items.
    """

    id: str
    previous: str | None
    own: bytes
    shared: Part
    items: tuple[Part, ...]
    inputs: int

    @property
    def size(self) -> int:
        """The bytes of its items."""
        return sum(len(item.body) for item in self.items)


def parts_of(response: Json, own_input: Sequence[Json], previous: str | None) -> Parts:
    """Return the parts of a response; see `ResponseStore.put`."""
    shared = response.copy()
    output: Sequence[Json] = shared.pop("output")
    own = {name: shared.pop(name) for name in _OWN if name in shared}
    ids: list[str | None] = []
    bodies = []
    for item in (*own_input, *output):
        item_id = item.get("id")
        if isinstance(item_id, str):
            item = item.copy()
            del item["id"]
        else:
            item_id = None
        ids.append(item_id)
        bodies.append(item)
    encoded = reading.dump_each([own, shared, *bodies])
    items = tuple(map(Part, ids, encoded[2:]))
    return Parts(
        response["id"], previous, encoded[0], Part(None, encoded[1]), items, len(own_input)
    )


def put_together(parts: Parts) -> Stored:
    """Return the response of these parts."""
    items = json_codec.loads(_joined(parts.items))
    own, shared = json_codec.loads(parts.own), json_codec.loads(parts.shared.body)
    response = {**own, **shared, "output": items[parts.inputs :]}
    return Stored(response, tuple(items[: parts.inputs]), parts.previous)


def items_of(param: str, items: Iterable[Part]) -> list[Json]:
    """Return stored items.

    :param param: the field of the request that names them.
    :raises InvalidRequest: they hold more than a request can; see `reading.loads`.
    """
    try:
        found: Any = reading.loads(_joined(items))
    except ValueError:
        raise too_large(param) from None
    whole: list[Json] = found
    return whole


def too_large(param: str) -> InvalidRequest:
    """Return the refusal of a request that names more stored items than a request can hold."""
    return InvalidRequest(
        f"The stored items that '{param}' names are more than a request can hold "
        f"({MAX_MESSAGE_BODY >> 20} MB, {reading.MAX_VALUES:,} values): begin a new conversation "
        "with the items that matter.",
        param=param,
        code="context_length_exceeded",
    )


def _joined(items: Iterable[Part]) -> bytes:
    return b"[%b]" % b",".join(map(_whole, items))


def _whole(item: Part) -> bytes:
    if item.id is None:
        return item.body
    comma = b"," if len(item.body) > len(b"{}") else b""
    return reading.dump({"id": item.id})[:-1] + comma + item.body[1:]
