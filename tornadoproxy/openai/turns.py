"""The turns of a conversation: what the translations of both of OpenAI's APIs build.

OpenAI's lists are flat; Anthropic's alternates between user and assistant. Every message, call and
result becomes blocks under one of two roles, and neighbours under the same role become one message,
so that the results of parallel calls and the user's next words are one turn, results first.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import MAX_TOOL_NAME, Json
from tornadoproxy.openai.thinking import BLOCKS
from tornadoproxy.openai.tool_calls import CallIds

if TYPE_CHECKING:
    from msgspec import Raw

# The upstream requires a user message first, and continues an assistant message that stands last.
# These texts stand in for a user message that the client did not send.
OPENING = "(The conversation begins.)"
CONTINUING = "(Continue.)"

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


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
                last["text"] = last["text"].rstrip()
            else:
                self.add("user", [text_block(CONTINUING)])
        for message in messages:
            message["content"] = shortest(message["content"])
        return self._conversation


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
