"""The web searches in a response's output, which the upstream has run.

A search becomes two items: one to show, and a reasoning item that carries its blocks. Clients
change the first before they send it back, and the upstream accepts its own blocks only unchanged.

Sources: https://platform.openai.com/docs/guides/tools-web-search and
https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/web-search-tool
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from tornadoproxy.openai.message import fields_of
from tornadoproxy.openai.responses.output.items import Block
from tornadoproxy.openai.responses.output.thoughts import carry
from tornadoproxy.openai.writing import string
from tornadoproxy.protocol import json_codec

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.output.items import Items


class Search(Block):
    """A search: the block that begins it, and its item.

    :ivar block: what goes back upstream.
    """

    def __init__(self, items: Items, given: Json) -> None:
        self._items = items
        self._place = items.place("ws")
        self._fragments: list[str] = []
        self._is_done = False
        self.block: Json = {
            "type": "server_tool_use",
            "id": string(given.get("id")),
            "name": given["name"],
            "input": fields_of(given.get("input")),
        }

    def open(self) -> bytes:
        begun = self._items.begin(self._place, self._item("in_progress"))
        return begun + self._event("in_progress")

    def grow(self, delta: Json) -> bytes:
        self._fragments.append(string(delta.get("partial_json")))
        return b""

    def close(self) -> bytes:
        written = "".join(self._fragments)
        if written:
            # it is not JSON if the upstream was cut off in it
            with suppress(ValueError, RecursionError):
                self.block["input"] = fields_of(json_codec.loads(written.encode()))
        return b"" if self._is_done else self._event("searching")

    def finish(self, status: str, found: object = None) -> bytes:
        """Finish the item.

        :param found: the results.
        """
        self._is_done = True
        out = self._event("completed") if status == "completed" else b""
        return out + self._items.finish(self._place, self._item(status, found))

    def _event(self, step: str) -> bytes:
        return self._items.events.event(f"response.web_search_call.{step}", self._place.fields)

    def _item(self, status: str, found: object = None) -> Json:
        query = string(self.block["input"].get("query"))
        action: Json = {"type": "search", "query": query, "queries": [query] if query else []}
        if isinstance(found, list):
            urls = [each.get("url") for each in found if isinstance(each, dict)]
            action["sources"] = [{"type": "url", "url": url} for url in urls if string(url)]
        fields = {"id": self._place.id, "type": "web_search_call"}
        return {**fields, "status": status, "action": action}


class Searches:
    """The searches of one response, of which some have no result yet."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._open: list[Search] = []
        self._carried: list[Json] = []  # the blocks that no item carries yet

    def begin(self, given: Json) -> Search:
        """Return the search that a block of the type ``server_tool_use`` begins."""
        search = Search(self._items, given)
        self._open.append(search)
        self._carried.append(search.block)
        return search

    def find(self, given: Json) -> bytes:
        """Finish a search with its result, a block of the type ``web_search_tool_result``.

        The result of a search that paused in the response before is only carried.
        """
        content, wanted = given.get("content"), given.get("tool_use_id")
        if not isinstance(content, (list, dict)) or not isinstance(wanted, str):
            return b""
        self._carried.append({name: given[name] for name in ("type", "tool_use_id", "content")})
        out = b""
        search = next((each for each in self._open if each.block["id"] == wanted), None)
        if search is not None:
            self._open.remove(search)
            # an error is an object in place of the list
            status = "completed" if isinstance(content, list) else "failed"
            out = search.finish(status, content)
        return out if self._open else out + self._carry()

    def end(self, *, paused: bool) -> bytes:
        """Finish the searches without a result.

        :param paused: whether the upstream goes on with them in the next turn. Otherwise it would
            not take them back.
        """
        if not self._carried:
            return b""
        out = b"".join([search.finish("incomplete") for search in self._open])
        if not paused:
            left = [search.block for search in self._open]
            self._carried = [block for block in self._carried if block not in left]
        self._open = []
        return out + self._carry()

    def _carry(self) -> bytes:
        blocks, self._carried = self._carried, []
        return carry(self._items, blocks) if blocks else b""
