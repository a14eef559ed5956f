"""A response in the parts in which stores keep it, each as JSON.

Clients that keep no state send all earlier items again with each turn, and the same tools: stored
whole, a conversation would take space in the square of its length. Therefore stores keep equal
parts of one principal once. An item's id is kept beside the item, since a client that sends an item
without one gets another id each time.
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
    from collections.abc import Iterable

    from tornadoproxy.openai.reading import Json

MAX_LINKS = 5_000
"""The most responses that continue one another."""

# The fields of a response object that may be large, and that a client repeats in each turn.
_REPEATED = ("instructions", "text", "tools")


# of many: objects that the garbage collector need not look at
class Item(Struct, frozen=True, gc=False):
    """An input or output item.

    :param id: its id; ``None`` if it has none.
    :param body: the item without its id.
    """

    id: str | None
    body: bytes


class Parts(Struct, frozen=True, gc=False):
    """A response in its parts.

    :param own: the fields of the response object, but for its output and those in `shared`.
    :param shared: the fields that other responses are likely to have as well.
    """

    id: str
    previous: str | None
    own: bytes
    shared: bytes
    input: tuple[Item, ...]
    output: tuple[Item, ...]

    @property
    def size(self) -> int:
        """The bytes of its items."""
        return sum(len(item.body) for item in (*self.input, *self.output))


def item_of(item: Json) -> Item:
    """Return an item as it is stored."""
    item_id = item.get("id")
    if not isinstance(item_id, str):
        return Item(None, reading.dump(item))
    body = item.copy()
    del body["id"]
    return Item(item_id, reading.dump(body))


def parts_of(
    response: Json, own_input: tuple[Item, ...], output: tuple[Item, ...], previous: str | None
) -> Parts:
    """Return the parts of a response; see `ResponseStore.put`."""
    own = response.copy()
    del own["output"]
    shared = {name: own.pop(name) for name in _REPEATED if name in own}
    encoded = reading.dump(own), reading.dump(shared)
    return Parts(response["id"], previous, *encoded, own_input, output)


def put_together(parts: Parts) -> Stored:
    """Return the response of these parts."""
    output = _loads(parts.output)
    response = {**json_codec.loads(parts.own), **json_codec.loads(parts.shared), "output": output}
    return Stored(response, tuple(_loads(parts.input)), parts.previous)


def items_of(param: str, items: Iterable[Item]) -> list[Json]:
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


def _loads(items: Iterable[Item]) -> list[Json]:
    found: list[Json] = json_codec.loads(_joined(items))
    return found


def _joined(items: Iterable[Item]) -> bytes:
    return b"[%b]" % b",".join(map(_whole, items))


def _whole(item: Item) -> bytes:
    if item.id is None:
        return item.body
    comma = b"," if len(item.body) > len(b"{}") else b""
    return reading.dump({"id": item.id})[:-1] + comma + item.body[1:]
