"""The translation of messages: turns, tool calls with their results, and thinking that comes back.

System and developer messages leave the list; all others become turns
(`tornadoproxy.openai.turns`).

The messages right after a call must answer it, each id once. This is validated here, so that the
error names the client's own message.

Clients send the proxy's responses back, so all that a response can hold is accepted: calls as
`tool_calls` describes them, names that no tool can have, thinking without a signature.
"""

from __future__ import annotations

from typing import NamedTuple

from tornadoproxy.openai.caching import cache_control
from tornadoproxy.openai.chat_completions import parts, thinking_blocks
from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import MAX_QUOTED, Json, array, obj, one_of, refuse, text
from tornadoproxy.openai.turns import Conversation, Turns, call_input, tool_result

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


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
    translator = _Translator(ignored)
    for index, message in enumerate(listed):
        param = f"messages[{index}]"
        translator.take(obj(message, param), param)
    return translator.finish(prefill=prefill)


class _Translator:
    def __init__(self, ignored: list[str]) -> None:
        self._ignored = ignored
        self._turns = Turns()
        self._role = ""  # of the client's last message
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
            self._turns.instruct(self._content(message, param, parts.IN_SYSTEM))
        elif role == "user":
            self._turns.add("user", self._content(message, param, parts.IN_USER))
        elif role == "assistant":
            self._turns.add("assistant", self._turn(message, param))
        elif role == "tool":
            self._take_result(message, param)
        else:
            self._take_function_result(message, param)
        self._role = role

    def finish(self, *, prefill: bool) -> Conversation:
        self._refuse_unanswered()
        return self._turns.finish(prefill=prefill and self._role == "assistant")

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
        found = parts.blocks(
            message.get("content"), f"{param}.content", parts.IN_USER, self._ignored
        )
        result = tool_result(call_id, found)
        cached = cache_control(message, param, self._ignored)
        if cached is not None:
            result["cache_control"] = cached
        self._turns.add("user", [result])

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
        arguments = call_input(function.get("arguments"), f"{param}.arguments")
        return self._turns.call(client_id, called, arguments)

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
