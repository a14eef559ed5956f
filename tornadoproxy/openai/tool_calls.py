"""Calls of tools that a client sends back: their ids and inputs, as the upstream accepts them.

Clients send the proxy's responses back, so all that a response can hold is accepted: arguments that
were cut and are not JSON, and ids that a later turn uses again.
"""

from __future__ import annotations

import hashlib
import re

from msgspec import Raw

from tornadoproxy.openai.reading import Json, dump, loads, text

INVALID_JSON = "INVALID_JSON"
"""The key of arguments that are not a JSON object, in the input that goes upstream.

Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming
"""

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")


class CallIds:
    """The upstream's ids of the calls in one conversation.

    The upstream accepts an id once in a conversation, but some clients restart counting in each
    turn. The same history always gets the same ids, since prompt caching depends on them.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}  # how often a call had each of the client's ids

    def next(self, client_id: str) -> str:
        """Return `client_id`, or an id derived from it where the upstream refuses it."""
        count = self._counts.get(client_id, 0)
        self._counts[client_id] = count + 1
        if not count and _CALL_ID.fullmatch(client_id):
            return client_id
        numbered = f"{count}:{client_id}".encode("utf-8", "surrogatepass")
        return f"call_{hashlib.sha256(numbered).hexdigest()[:32]}"


def call_input(arguments: object, param: str) -> Json | Raw:
    """Return a call's input; arguments that are not a JSON object are wrapped in one, as text.

    The input is encoded at once, so that the bound of values holds for each call, not for all.

    :param arguments: the client's JSON text, or ``None``.
    :raises InvalidRequest: it is not a string.
    """
    written = "" if arguments is None else text(arguments, param)
    try:
        encoded = written.encode(errors="surrogatepass")
        document = loads(encoded, "surrogatepass") if written.strip() else None
    except ValueError:
        document = written
    if document is None or document == []:  # some languages write an empty object as a list
        return {}
    return Raw(dump(document)) if isinstance(document, dict) else {INVALID_JSON: written}
