"""The turns of a conversation: what the translations of both of OpenAI's APIs build.

OpenAI's lists are flat; Anthropic's alternates between user and assistant. Every message, call and
result becomes blocks under one of two roles, and adjacent ones of one role become one message,
so that the results of parallel calls and the user's next words are one turn, results first.

Clients send the proxy's responses back, so all that a response can hold is accepted: arguments of
calls that were cut and are not JSON, and ids that a later turn uses again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass, field

from msgspec import Raw

from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import MAX_TOOL_NAME, Json, dump, loads, text
from tornadoproxy.openai.thinking import BLOCKS

# The upstream requires a user message first, and continues an assistant message that stands last.
# These texts stand in for a user message that the client did not send.
OPENING = "(The conversation begins.)"
CONTINUING = "(Continue.)"

INVALID_JSON = "INVALID_JSON"
"""The key of arguments that are not a JSON object, in the input that goes upstream.

Source: https://platform.claude.com/docs/en/agents-and-tools/tool-use/fine-grained-tool-streaming
"""

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


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


@dataclass
class Conversation:
    """The translated messages.

    :param system: the blocks of the system prompt, in order.
    :param messages: user and assistant turns, alternating; a system message may follow a user's.
    :param called: the names of the tools that were called, in order.
    """

    system: list[Json] = field(default_factory=list)
    messages: list[Json] = field(default_factory=list)
    called: list[str] = field(default_factory=list)

    @property
    def lacks_thinking(self) -> bool:
        """Whether it goes on with the results of calls that came without thinking.

        The upstream refuses this together with a budget for thinking.
        """
        last = [turn["content"] for turn in self.messages if turn["role"] != "system"][-2:]
        return (
            len(last) == 2
            and isinstance(last[1], list)
            and last[1][0]["type"] == "tool_result"
            and last[0][0]["type"] not in BLOCKS
        )


class Turns:
    """Builds a conversation, block by block."""

    def __init__(self) -> None:
        self._conversation = Conversation()
        self._ids = CallIds()

    @property
    def last_role(self) -> str:
        """The role of the last message; empty if there is none."""
        messages = self._conversation.messages
        return messages[-1]["role"] if messages else ""

    def instruct(self, blocks: Collection[Json]) -> None:
        """Add blocks to the system prompt."""
        self._conversation.system += blocks

    def add(self, role: str, blocks: list[Json]) -> None:
        """Add blocks to the last message if it has that role, and to a new one otherwise."""
        if not blocks:
            return
        messages = self._conversation.messages
        if self.last_role == role:
            messages[-1]["content"] += blocks
        else:
            messages.append({"role": role, "content": blocks})

    def call(self, client_id: str, name: str, tool_input: Json | Raw) -> Json:
        """Return the block of a call, with a name and an id that the upstream accepts.

        :param client_id: the client's id of the call.
        :param name: a tool's name, or any other: a model may call names that no tool can have.
        """
        name = _NOT_IN_A_NAME.sub("_", name)[:MAX_TOOL_NAME] or "_"
        self._conversation.called.append(name)
        return {
            "type": "tool_use",
            "id": self._ids.next(client_id),
            "name": name,
            "input": tool_input,
        }

    def finish(self, *, prefill: bool = False) -> Conversation:
        """Return the conversation, which begins and ends with the user.

        :param prefill: whether an assistant message that stands last is left there, for the model
            to continue it.
        """
        messages = self._conversation.messages
        if not messages or messages[0]["role"] != "user":
            messages.insert(0, {"role": "user", "content": [text_block(OPENING)]})
        if self.last_role == "assistant":
            if prefill:
                # the upstream refuses blanks at the end of a message to continue
                last = messages[-1]["content"][-1]
                if last["type"] == "text":
                    last["text"] = last["text"].rstrip()
            else:
                self.add("user", [text_block(CONTINUING)])
        for message in messages:
            message["content"] = shortest(message["content"])
        return self._conversation


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


def tool_result(call_id: str, found: list[Json]) -> Json:
    """Return the block of a call's result.

    :param call_id: the upstream's id of the call.
    :param found: the blocks of the result.
    """
    result: Json = {"type": "tool_result", "tool_use_id": call_id}
    if found:
        result["content"] = shortest(found)
    return result


def drop_last_thinking(turn: list[Json]) -> bool:
    """Take thinking, which the upstream refuses there, from the end of an assistant's turn.

    :returns: whether there was any.
    """
    length = len(turn)
    while turn and turn[-1]["type"] in BLOCKS:
        turn.pop()
    return len(turn) < length


def shortest(found: list[Json]) -> str | list[Json]:
    """Return the content, as a string if it is one block of plain text."""
    if len(found) == 1 and found[0].keys() == {"type", "text"}:
        plain: str = found[0]["text"]
        return plain
    return found
