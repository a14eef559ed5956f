"""``/openai/v1/responses/{id}`` and below: responses that are stored. Nothing goes upstream."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote

from tornadoproxy.config import parsers
from tornadoproxy.errors import ClientError, InvalidRequest, MethodNotAllowed, NotFound
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.openai.reading import one_of, refuse
from tornadoproxy.openai.responses import shown
from tornadoproxy.openai.writing import encode
from tornadoproxy.protocol.request_target import of_responses

if TYPE_CHECKING:
    from tornadoproxy.handlers.openai.response_store import ResponseStore
    from tornadoproxy.openai.reading import Json

DEFAULT_LIMIT, MAX_LIMIT = "20", 100
"""How many items are listed at once.

Source: https://platform.openai.com/docs/api-reference/responses/input-items
"""


class WebSocketHandler(ExchangeHandler):
    """The attempt to open a WebSocket, which Codex makes first."""

    def admit(self) -> None:
        if self.request.method != "GET":
            raise MethodNotAllowed("Use POST for responses.", ["POST"])
        # with any other status, Codex fails, or uses POST only after several attempts
        raise ClientError(
            "There is no WebSocket for responses: use POST, with 'stream' for events.",
            status=426,
            headers={"Connection": "Upgrade", "Upgrade": "HTTP/1.1"},
        )


class CancelHandler(ExchangeHandler):
    """The attempt to cancel a response that runs in the background, where none does."""

    def admit(self) -> None:
        if self.request.method != "POST":
            raise MethodNotAllowed("Use POST to cancel a response.", ["POST"])
        raise InvalidRequest(
            "No response runs in the background here, so none can be canceled by its id: close "
            "the connection of its request instead."
        )


class StoredHandler(ExchangeHandler):
    """One request about a response that is stored."""

    methods: tuple[str, ...] = ("GET", "HEAD")

    def admit(self) -> None:
        if self.request.method not in self.methods:
            raise MethodNotAllowed(f"Use {self.methods[0]} here.", self.methods)
        self.refuse_body()

    async def serve(self) -> None:
        store, identity = self.gateway.response_store, self.exchange.identity
        assert identity is not None
        response_id = unquote((of_responses(self.request.path) or ("",))[0])
        query = {name: found[-1] for name, found in parse_qs(self.request.query).items()}
        document = None
        if store is not None:
            document = await self.document(store, identity.principal, response_id, query)
        if self.ended:
            return
        if document is None:
            raise NotFound(
                f"Response with id '{response_id[:100]}' not found."
                + (" This proxy stores none (RESPONSES_STORE is off)." if store is None else "")
            )
        self.set_header(self.dialect.request_id_header, self.request_id)
        self.set_header("Cache-Control", "no-store")
        self.write(encode(document))
        self.end()

    @abstractmethod
    async def document(
        self, store: ResponseStore, principal: str, response_id: str, query: dict[str, str]
    ) -> Json | None:
        """Return what is requested; ``None`` if the response is not stored.

        :raises InvalidRequest: the query is invalid.
        """


class StoredResponseHandler(StoredHandler):
    """A response that is retrieved or deleted."""

    methods = ("GET", "HEAD", "DELETE")

    async def document(
        self, store: ResponseStore, principal: str, response_id: str, query: dict[str, str]
    ) -> Json | None:
        if self.request.method == "DELETE":
            deleted = await store.delete(principal, response_id)
            shown = {"id": response_id, "object": "response", "deleted": True}
            return shown if deleted else None
        if query.get("stream", "false").lower() == "true":
            refuse("stream", "must be false: the events of a response are not stored")
        stored = await store.get(principal, response_id)
        return None if stored is None else stored.response


class InputItemsHandler(StoredHandler):
    """The input items of a response."""

    async def document(
        self, store: ResponseStore, principal: str, response_id: str, query: dict[str, str]
    ) -> Json | None:
        order = one_of(query.get("order", "desc"), "order", ("asc", "desc"))
        limit = _limit(query.get("limit", DEFAULT_LIMIT))
        stored = await store.get(principal, response_id)
        if stored is None:
            return None
        items = [shown(item, response_id, index) for index, item in enumerate(stored.input)]
        if order == "desc":
            items.reverse()
        if (after := query.get("after")) is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                refuse("after", "must be the id of an item of this response")
            items = items[ids.index(after) + 1 :]
        page = items[:limit]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }


def _limit(value: str) -> int:
    try:
        return parsers.integer(minimum=1, maximum=MAX_LIMIT)(value)
    except ValueError as error:
        refuse("limit", str(error))
