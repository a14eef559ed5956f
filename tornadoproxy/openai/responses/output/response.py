"""The response object: made of a whole message here, and of its events by `stream`.

Source: https://platform.openai.com/docs/api-reference/responses/object
"""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING

from tornadoproxy.errors import UpstreamReported
from tornadoproxy.openai.message import fields_of, refusal, token_counts
from tornadoproxy.openai.responses.items import shown
from tornadoproxy.openai.responses.output.blocks import LIMITS, Output, Summary
from tornadoproxy.openai.responses.output.events import EventWriter, NoEvents
from tornadoproxy.openai.responses.output.items import Block, Items
from tornadoproxy.openai.writing import string

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json
    from tornadoproxy.openai.responses.translation import Translation

_MAX_STEM = 40  # characters of an id, with room for what stands before and after them
_NOT_IN_AN_ID = re.compile(r"[^a-zA-Z0-9]")

# The error of a response that failed because the model refused: clients show its message.
_REFUSED = "invalid_prompt"
_NO_SUMMARY = "The model wrote no summary of the conversation. Try again."

# Whose messages a compaction keeps.
_KEPT_ROLES = frozenset({"user", "developer", "system"})


def translate_message(
    message: Json, translation: Translation, *, created: int | None = None
) -> Json:
    """Translate a message into a response object.

    :param translation: of the request.
    :param created: the time in seconds since the epoch; by default, now.
    """
    draft = Draft(message, translation, created, NoEvents())
    for given in message["content"]:
        _, block = draft.open(fields_of(given))
        block.close()
    _, response = draft.end(message, message.get("usage"))
    return response


def translate_compaction(
    message: Json, translation: Translation, *, created: int | None = None
) -> Json:
    """Translate the summary of a conversation into what ``/responses/compact`` returns.

    It keeps the request's messages, but for the model's, and has the summary after them.

    :raises UpstreamReported: the model refused, or wrote nothing.
    """
    response = translate_message(message, translation, created=created)
    error = response["error"]
    if error is not None:
        status = 400 if error["code"] == _REFUSED else None
        raise UpstreamReported(error["message"], status=status, code=error["code"])
    response_id = response["id"]
    given = [shown(item, response_id, at) for at, item in enumerate(translation.input)]
    return {
        "id": response_id,
        "object": "response.compaction",
        "created_at": response["created_at"],
        "output": [*filter(None, map(_kept, given)), *response["output"]],
        "usage": response["usage"],
    }


class Draft:
    """A response object that is being made.

    :param message: the upstream's, at its beginning or whole.
    :param created: the time in seconds since the epoch; by default, now.
    :param events: writes the events.
    """

    def __init__(
        self, message: Json, translation: Translation, created: int | None, events: EventWriter
    ) -> None:
        stem = _stem(message.get("id"))
        self._items = Items(stem, events)
        self._events = events
        self._translation = translation
        self._id = f"resp_{stem}"
        self._created = int(time.time()) if created is None else created
        self._model = string(message.get("model"))
        kind = Summary if translation.compacts else Output
        self.output = kind(self._items, translation.origins)

    def begin(self) -> bytes:
        """Return the events of a response that begins."""
        response = {"response": self._response("in_progress")}
        begun = self._events.event("response.created", response)
        return begun + self._events.event("response.in_progress", response)

    def open(self, given: Json) -> tuple[bytes, Block]:
        """Begin a block; see `Output.open`."""
        if given.get("type") == "fallback":
            self._model = string(fields_of(given.get("to")).get("model"))
        return self.output.open(given)

    def end(self, stop: Json, usage: object) -> tuple[bytes, Json]:
        """Finish the response; return its last events, and itself.

        :param stop: has the upstream's ``stop_reason``, and ``stop_details`` if it gave any.
        :param usage: the upstream's.
        """
        reason = string(stop.get("stop_reason"))
        out = self.output.end(reason)
        account = _usage(usage)
        refused = refusal(reason, stop.get("stop_details"))
        if refused is not None and self._fails_by_refusal():
            last, response = self.fail(_REFUSED, refused, account)
            return out + last, response
        if self._translation.compacts and not self._items.finished:
            last, response = self.fail("server_error", _NO_SUMMARY, account)
            return out + last, response
        if refused is not None:
            out += self.output.refuse(refused)
        incomplete = None
        if reason in LIMITS:
            incomplete = "max_output_tokens"
        elif self.output.is_cut:
            incomplete = "content_filter"
        status = "completed" if incomplete is None else "incomplete"
        response = self._response(status, usage=account, incomplete=incomplete)
        return out + self._events.event(f"response.{status}", {"response": response}), response

    def fail(self, code: str, message: str, usage: Json | None = None) -> tuple[bytes, Json]:
        """End the response with an error; return the event, and the response."""
        response = self._response("failed", usage=usage, error={"code": code, "message": message})
        return self._events.event("response.failed", {"response": response}), response

    def _fails_by_refusal(self) -> bool:
        translation, output = self._translation, self.output
        if translation.compacts:
            return True
        return translation.for_codex and (output.is_cut or not output.is_shown)

    def _response(
        self,
        status: str,
        *,
        usage: Json | None = None,
        incomplete: str | None = None,
        error: Json | None = None,
    ) -> Json:
        return {
            "id": self._id,
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": error,
            "incomplete_details": None if incomplete is None else {"reason": incomplete},
            "model": self._model,
            "output": self._items.finished,
            "usage": usage,
            **self._translation.echo,
        }


def _stem(message_id: object) -> str:
    """Return what the ids in a response have in common, by which its message can be found."""
    stem = string(message_id).removeprefix("msg_")
    if not (stem.isascii() and stem.isalnum()):
        stem = _NOT_IN_AN_ID.sub("", stem)
    return stem[:_MAX_STEM] or secrets.token_hex(12)


def _usage(reported: object) -> Json:
    counts = token_counts(reported)
    return {
        "input_tokens": counts.input,
        "input_tokens_details": {
            "cached_tokens": counts.cached,
            "cache_write_tokens": counts.cache_written,
        },
        "output_tokens": counts.output,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning or 0},
        "total_tokens": counts.input + counts.output,
    }


def _kept(item: Json) -> Json | None:
    """Return an input item as a compaction keeps it; ``None`` for what its summary replaces."""
    if item["type"] != "message" or item["role"] not in _KEPT_ROLES:
        return None
    return {**item, "status": "completed"}
