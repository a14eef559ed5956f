"""The translation of messages: turns, tool calls with their results, and thinking that comes back.

The theory. OpenAI's list is flat; Anthropic's alternates between user and assistant. System and
developer messages leave the list. Every other message becomes blocks under one of two roles, and
neighbours under the same role become one message, so that the results of parallel calls and the
user's next words are one turn, results first.

The messages right after a call must answer it, each id once. This is validated here, so that the
error names the client's own message.

Clients send the proxy's responses back, so all that a response can hold is accepted: calls as
`tool_calls` describes them, names that no tool can have, thinking without a signature.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from tornadoproxy.openai.caching import cache_control
from tornadoproxy.openai.chat_completions import parts, thinking_blocks
from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import (
    MAX_QUOTED,
    MAX_TOOL_NAME,
    Json,
    array,
    obj,
    one_of,
    refuse,
    text,
)
from tornadoproxy.openai.thinking import BLOCKS
from tornadoproxy.openai.tool_calls import CallIds, call_input

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# The upstream requires a user message first, and continues an assistant message that stands last.
# These texts stand in for a user message that the client did not send.
OPENING = "(The conversation begins.)"
CONTINUING = "(Continue.)"

_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9_-]")


@dataclass
class Conversation:
    """The translated messages.

    :param system: the blocks of the system prompt, in order.
    :param messages: user and assistant turns, alternating.
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
        return (
            len(self.messages) > 1
            and isinstance(self.messages[-1]["content"], list)
            and self.messages[-1]["content"][0]["type"] == "tool_result"
            and self.messages[-2]["content"][0]["type"] not in BLOCKS
        )


def translate(messages: object, ignored: list[str], *, prefill: bool = False) -> Conversation:
    """Translate a request's ``messages``.

    :param ignored: takes the names of what is dropped.
    :param prefill: whether the model continues an assistant message that stands last. Otherwise
        a user message that asks for a new message follows it.
    :raises InvalidRequest: a message is invalid; the error names it.
    """
    listed = array(messages, "messages")
    if not listed:
        refuse("messages", "must not be empty")
    translator = _Translator(ignored, prefill=prefill)
    for index, message in enumerate(listed):
        param = f"messages[{index}]"
        translator.take(obj(message, param), param)
    return translator.finish()


class _Translator:
    def __init__(self, ignored: list[str], *, prefill: bool) -> None:
        self._ignored = ignored
        self._prefill = prefill
        self._conversation = Conversation()
        self._role = ""  # of the client's last message
        self._ids = CallIds()
        self._waiting: dict[str, _Call] = {}  # calls without a result, by the client's ids
        self._legacy: _Call | None = None  # the last function_call

    def take(self, message: Json, param: str) -> None:
        role = one_of(message.get("role"), f"{param}.role", ROLES)
        if role not in {"tool", "function"}:
            self._refuse_unanswered()
        if message.get("name") is not None and role != "function":
            text(message["name"], f"{param}.name")
            self._ignored.append("messages.name")
        if role in {"system", "developer"}:
            self._conversation.system += self._content(message, param, parts.IN_SYSTEM)
        elif role == "user":
            self._add("user", self._content(message, param, parts.IN_USER))
        elif role == "assistant":
            self._add("assistant", self._turn(message, param))
        elif role == "tool":
            self._take_result(message, param)
        else:
            self._take_function_result(message, param)
        self._role = role

    def finish(self) -> Conversation:
        self._refuse_unanswered()
        messages = self._conversation.messages
        if not messages or messages[0]["role"] != "user":
            messages.insert(0, {"role": "user", "content": [text_block(OPENING)]})
        if messages[-1]["role"] == "assistant":
            if self._prefill and self._role == "assistant":
                # the upstream refuses blanks at the end of a message to continue
                last = messages[-1]["content"][-1]
                last["text"] = last["text"].rstrip()
            else:
                self._add("user", [text_block(CONTINUING)])
        for message in messages:
            message["content"] = _shortest(message["content"])
        return self._conversation

    def _turn(self, message: Json, param: str) -> list[Json]:
        if message.get("audio") is not None:
            refuse(f"{param}.audio", "is not supported: there is no audio")
        texts = self._content(message, param, parts.IN_ASSISTANT)
        if message.get("refusal") is not None:
            refusal = text(message["refusal"], f"{param}.refusal")
            texts += [text_block(refusal)] if refusal.strip() else []
        calls = self._calls(message, param)
        given = message.get("thinking_blocks")
        if given is not None:
            where = f"{param}.thinking_blocks"
            return thinking_blocks.put_back(given, where, texts, calls, self._ignored)
        if message.get("reasoning_content"):
            self._ignored.append(
                "messages.reasoning_content"
            )  # refused upstream without a signature
        return texts + calls

    def _calls(self, message: Json, param: str) -> list[Json]:
        calls: list[Json] = []
        if message.get("tool_calls") is not None:
            param_of_calls = f"{param}.tool_calls"
            for index, call in enumerate(array(message["tool_calls"], param_of_calls)):
                calls.append(self._call(call, f"{param_of_calls}[{index}]"))
        if message.get("function_call") is not None:
            calls.append(self._function_call(message["function_call"], f"{param}.function_call"))
        return calls

    def _take_result(self, message: Json, param: str) -> None:
        client_id = text(message.get("tool_call_id"), f"{param}.tool_call_id")
        call = self._waiting.pop(client_id, None)
        if call is None:
            refuse(
                f"{param}.tool_call_id",
                f"({client_id[:MAX_QUOTED]!r}) must be the id of a call in the assistant message "
                "before, each answered once",
            )
        self._add_result(call.id, message, param)

    def _take_function_result(self, message: Json, param: str) -> None:
        name = text(message.get("name"), f"{param}.name")
        call = self._legacy
        if call is None or call.name != name:
            refuse(f"{param}.name", "must be that of the function_call right before")
        self._legacy = None
        self._add_result(call.id, message, param)

    def _add_result(self, call_id: str, message: Json, param: str) -> None:
        result: Json = {"type": "tool_result", "tool_use_id": call_id}
        found = parts.blocks(
            message.get("content"), f"{param}.content", parts.IN_USER, self._ignored
        )
        if found:
            result["content"] = _shortest(found)
        cached = cache_control(message, param, self._ignored)
        if cached is not None:
            result["cache_control"] = cached
        self._add("user", [result])

    def _content(self, message: Json, param: str, kinds: tuple[str, ...]) -> list[Json]:
        found = parts.blocks(message.get("content"), f"{param}.content", kinds, self._ignored)
        cached = cache_control(message, param, self._ignored)
        if cached is not None and found:
            found[-1]["cache_control"] = cached
        return found

    def _call(self, call: object, param: str) -> Json:
        call = obj(call, param)
        if call.get("type", "function") != "function":
            refuse(f"{param}.type", "must be function")
        client_id = text(call.get("id"), f"{param}.id")
        if not client_id or client_id in self._waiting:
            refuse(f"{param}.id", "must be unique in its message, and not empty")
        function = obj(call.get("function"), f"{param}.function")
        block = self._tool_use(client_id, function, f"{param}.function")
        self._waiting[client_id] = _Call(function["name"], block["id"], param)
        return block

    def _function_call(self, call: object, param: str) -> Json:
        function = obj(call, param)
        block = self._tool_use("function_call", function, param)
        self._legacy = _Call(function["name"], block["id"], param)
        return block

    def _tool_use(self, client_id: str, function: Json, param: str) -> Json:
        called = text(function.get("name"), f"{param}.name")
        # a model may call a name that no tool can have, and that the upstream refuses
        name = _NOT_IN_A_NAME.sub("_", called)[:MAX_TOOL_NAME] or "_"
        self._conversation.called.append(name)
        return {
            "type": "tool_use",
            "id": self._ids.next(client_id),
            "name": name,
            "input": call_input(function.get("arguments"), f"{param}.arguments"),
        }

    def _add(self, role: str, turn: list[Json]) -> None:
        messages = self._conversation.messages
        if not turn:
            return
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += turn
        else:
            messages.append({"role": role, "content": turn})

    def _refuse_unanswered(self) -> None:
        for client_id, call in self._waiting.items():
            quoted = repr(client_id[:MAX_QUOTED])
            refuse(call.param, f"({quoted}) must be answered by a tool message right after it")
        if self._legacy is not None:
            quoted = repr(self._legacy.name[:MAX_QUOTED])
            refuse("messages", f"must answer the function_call of {quoted}")


class _Call(NamedTuple):
    name: str  # the client's
    id: str  # upstream's
    param: str


def _shortest(found: list[Json]) -> str | list[Json]:
    """Return the content, as a string if it is one block of plain text."""
    if len(found) == 1 and found[0].keys() == {"type", "text"}:
        plain: str = found[0]["text"]
        return plain
    return found
