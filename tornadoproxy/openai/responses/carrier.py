"""The upstream's blocks, which a client keeps in ``encrypted_content`` and sends back.

A block of thinking, or of a tool that the upstream runs, must go back unchanged, and an item of
OpenAI's API has no place for it but ``encrypted_content``: clients return that as it is.

A carrier is not signed or encrypted. It can hold only blocks of a few types, all of which its
sender could also send by Anthropic's API, and whose signatures the upstream verifies.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence
from typing import NoReturn

from tornadoproxy.openai.reading import MAX_VALUES, Json, count_values, loads, refuse
from tornadoproxy.openai.thinking import BLOCKS

PREFIX = "tp1."
"""The beginning of each carrier, with the version of its format."""

MAX_ITEM = 8 * 1024 * 1024
"""The most bytes that one item may carry, decompressed."""

MAX_REQUEST = 32 * 1024 * 1024
"""The most bytes that all items of a request may carry, decompressed."""

# Carriers that would grow more than this are packed without compression, so that what they take
# to unpack is bounded by what they are long.
_MAX_RATIO = 16

# The fields of each block beside its type. A client may send no others, such as cache_control.
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    **{kind: dict.fromkeys(names, str) for kind, names in BLOCKS.items()},
    "server_tool_use": {"id": str, "name": str, "input": dict},
    "web_search_tool_result": {"tool_use_id": str, "content": (list, dict)},
}
_SUMMARY: dict[str, dict[str, type | tuple[type, ...]]] = {"text": {"text": str}}
_OPTIONAL = {"caller": dict}


class Room:
    """What the rest of a request may carry.

    :ivar left: bytes.
    :ivar values: JSON values. All blocks of a request are in memory at once, and a short value
        takes tens of times its length there; see `MAX_VALUES`.
    """

    def __init__(self) -> None:
        self.left = MAX_REQUEST
        self.values = MAX_VALUES


def pack(blocks: Sequence[Json]) -> str:
    """Return the carrier of `blocks`, the upstream's; of their fields, only those that go back."""
    kept = [_kept(block) for block in blocks]
    encoded = json.dumps(kept, separators=(",", ":")).encode()
    packed = zlib.compress(encoded, 1)
    if len(encoded) > _MAX_RATIO * len(packed):
        packed = zlib.compress(encoded, 0)
    return PREFIX + base64.urlsafe_b64encode(packed).decode()


def unpack(carried: str, param: str, room: Room | None = None) -> list[Json] | None:
    """Return the blocks in a carrier; ``None`` if it is not one of this gateway's.

    :param room: what the request's other items leave of `MAX_REQUEST` and `MAX_VALUES`.
    :raises InvalidRequest: the carrier is damaged, or too large.
    """
    return _blocks(carried, param, room or Room(), _FIELDS)


def pack_summary(summary: str) -> str:
    """Return the carrier of a compaction item: the text that stands for the conversation."""
    return pack([{"type": "text", "text": summary}])


def unpack_summary(carried: str, param: str, room: Room | None = None) -> str | None:
    """Return the text in the carrier of a compaction item; see `unpack`."""
    blocks = _blocks(carried, param, room or Room(), _SUMMARY)
    return None if blocks is None else "\n".join([block["text"] for block in blocks])


def _kept(block: Json) -> Json:
    fields = _SUMMARY.get(block["type"]) or _FIELDS[block["type"]]
    names = ("type", *fields, *_OPTIONAL)
    return {name: block[name] for name in names if name in block}


def _blocks(
    carried: str, param: str, room: Room, allowed: dict[str, dict[str, type | tuple[type, ...]]]
) -> list[Json] | None:
    if not carried.startswith(PREFIX):
        return None
    try:
        packed = base64.b64decode(carried[len(PREFIX) :], altchars=b"-_", validate=True)
        encoded = _decompressed(packed, param, room)
        blocks = loads(encoded)
    except (binascii.Error, ValueError, zlib.error):
        _refuse_damaged(param)
    if not isinstance(blocks, list) or not all(_is_whole(block, allowed) for block in blocks):
        _refuse_damaged(param)
    return blocks


def _decompressed(packed: bytes, param: str, room: Room) -> bytes:
    limit = min(MAX_ITEM, room.left)
    decompressor = zlib.decompressobj()
    encoded = decompressor.decompress(packed, min(limit, _MAX_RATIO * len(packed)) + 1)
    if len(encoded) > limit:
        held = "an item" if limit == MAX_ITEM else "a request"
        most = MAX_ITEM if limit == MAX_ITEM else MAX_REQUEST
        refuse(param, f"is too large: {held} may carry {most} bytes; leave the item out")
    if not decompressor.eof:
        raise zlib.error("cut, or grown beyond what is ever packed")
    room.left -= len(encoded)
    room.values -= count_values(encoded, room.values)
    if room.values < 0:
        refuse(param, f"is too large: a request may carry {MAX_VALUES} values; leave the item out")
    return encoded


def _is_whole(block: object, allowed: dict[str, dict[str, type | tuple[type, ...]]]) -> bool:
    if not isinstance(block, dict):
        return False
    fields = allowed.get(str(block.get("type")))
    if fields is None or block.keys() - fields.keys() - _OPTIONAL.keys() != {"type"}:
        return False
    optional = {name: kind for name, kind in _OPTIONAL.items() if name in block}
    return all(isinstance(block.get(name), kind) for name, kind in {**fields, **optional}.items())


def _refuse_damaged(param: str) -> NoReturn:
    refuse(param, "is damaged: send it back as it came, or leave the item out")
