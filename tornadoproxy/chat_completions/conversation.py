"""Translates the messages: turns, tool calls and their results, thinking that comes back.

The theory. OpenAI's list is flat; Anthropic's alternates between user and assistant. System and
developer messages leave the list. Every other message becomes blocks under one of two roles, and
neighbours under the same role become one message, so that the results of parallel calls and the
user's next words are one turn, results first.

A call must be answered by the messages right after it, each id once; this is checked here, so that
the error names the client's own message.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

from tornadoproxy.chat_completions import content, thinking
from tornadoproxy.chat_completions.content import cache_control, text_block
from tornadoproxy.chat_completions.reading import (
    MAX_QUOTED,
    Json,
    array,
    loads,
    obj,
    one_of,
    refuse,
    text,
    tool_name,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

# Upstream wants the user to speak first, and continues an answer that stands last. Where the
# client's messages leave the user nothing to say there, this is said.
OPENING = "(The conversation begins.)"
CONTINUING = "(Continue.)"

_TOOL_ID = re.compile(r"[a-zA-Z0-9_-]{1,128}")


@dataclass
class Conversation:
    """What the messages become.

    :param system: the system prompt's blocks, in order.
    :param messages: user and assistant turns, alternating.
    :param called: the names of the tools that were called, in order.
    """

    system: list[Json] = field(default_factory=list)
    messages: list[Json] = field(default_factory=list)
    called: list[str] = field(default_factory=list)

    @property
    def lacks_thinking(self) -> bool:
        """Whether it goes on with the results of calls that came without thinking.

        With a budget for thinking, upstream does not take that.
        """
        return (
            len(self.messages) > 1
            and isinstance(self.messages[-1]["content"], list)
            and self.messages[-1]["content"][0]["type"] == "tool_result"
            and self.messages[-2]["content"][0]["type"] not in thinking.KEYS
        )


def translate(messages: object, ignored: list[str]) -> Conversation:
    """Translate a request's ``messages``.

    :param ignored: takes the names of what is dropped.
    :raises InvalidRequest: a message is wrong; the error names it.
    """
    listed = array(messages, "messages")
    if not listed:
        refuse("messages", "must not be empty")
    translator = _Translator(ignored)
    for index, message in enumerate(listed):
        param = f"messages[{index}]"
        translator.take(obj(message, param), param)
    return translator.finish()


class _Translator:
    def __init__(self, ignored: list[str]) -> None:
        self._ignored = ignored
        self._conversation = Conversation()
        self._role = ""  # of the client's last message
        self._seen: set[str] = set()
        self._waiting: dict[str, str] = {}  # ids of calls without a result, to their params
        self._legacy: tuple[str, str] | None = None  # the last function_call: its name and id
        self._legacy_count = 0

    def take(self, message: Json, param: str) -> None:
        role = one_of(message.get("role"), f"{param}.role", ROLES)
        if role not in {"tool", "function"}:
            self._refuse_unanswered()
        if message.get("name") is not None and role != "function":
            text(message["name"], f"{param}.name")
            self._ignored.append("messages.name")
        if role in {"system", "developer"}:
            self._conversation.system += self._content(message, param, content.IN_SYSTEM)
        elif role == "user":
            self._add("user", self._content(message, param, content.IN_USER))
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
            if self._role != "assistant":
                self._add("user", [text_block(CONTINUING)])
            elif messages[-1]["content"][-1]["type"] == "text":
                # upstream continues from here, and takes no blanks at the end
                last = messages[-1]["content"][-1]
                last["text"] = last["text"].rstrip()
        for message in messages:
            message["content"] = _shortest(message["content"])
        return self._conversation

    def _turn(self, message: Json, param: str) -> list[Json]:
        if message.get("audio") is not None:
            refuse(f"{param}.audio", "is not supported: there is no audio")
        texts = self._content(message, param, content.IN_ASSISTANT)
        if message.get("refusal") is not None:
            refusal = text(message["refusal"], f"{param}.refusal")
            texts += [text_block(refusal)] if refusal.strip() else []
        calls = self._calls(message, param)
        given = message.get("thinking_blocks")
        if given is not None:
            return thinking.put_back(given, f"{param}.thinking_blocks", texts, calls)
        if message.get("reasoning_content"):
            self._ignored.append("messages.reasoning_content")  # unsigned, it is not accepted
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
        if self._waiting.pop(client_id, None) is None:
            refuse(
                f"{param}.tool_call_id",
                f"({client_id[:MAX_QUOTED]!r}) must be the id of a call in the assistant message "
                "before, each answered once",
            )
        self._add_result(_tool_id(client_id), message, param)

    def _take_function_result(self, message: Json, param: str) -> None:
        name = text(message.get("name"), f"{param}.name")
        if self._legacy is None or self._legacy[0] != name:
            refuse(f"{param}.name", "must be that of the function_call right before")
        _, call_id = self._legacy
        self._legacy = None
        self._add_result(call_id, message, param)

    def _add_result(self, call_id: str, message: Json, param: str) -> None:
        result: Json = {"type": "tool_result", "tool_use_id": call_id}
        found = content.blocks(
            message.get("content"), f"{param}.content", content.IN_USER, self._ignored
        )
        if found:
            result["content"] = _shortest(found)
        cached = cache_control(message, param, self._ignored)
        if cached is not None:
            result["cache_control"] = cached
        self._add("user", [result])

    def _content(self, message: Json, param: str, kinds: tuple[str, ...]) -> list[Json]:
        found = content.blocks(message.get("content"), f"{param}.content", kinds, self._ignored)
        cached = cache_control(message, param, self._ignored)
        if cached is not None and found:
            found[-1]["cache_control"] = cached
        return found

    def _call(self, call: object, param: str) -> Json:
        call = obj(call, param)
        if call.get("type", "function") != "function":
            refuse(f"{param}.type", "must be function")
        client_id = text(call.get("id"), f"{param}.id")
        if not client_id or client_id in self._seen:
            refuse(f"{param}.id", "must be unique, and not empty")
        self._seen.add(client_id)
        self._waiting[client_id] = param
        function = obj(call.get("function"), f"{param}.function")
        return self._tool_use(_tool_id(client_id), function, f"{param}.function")

    def _function_call(self, call: object, param: str) -> Json:
        block = self._tool_use(f"function_call_{self._legacy_count}", obj(call, param), param)
        self._legacy_count += 1
        self._legacy = (block["name"], block["id"])
        return block

    def _tool_use(self, call_id: str, function: Json, param: str) -> Json:
        name = tool_name(function.get("name"), f"{param}.name")
        self._conversation.called.append(name)
        return {
            "type": "tool_use",
            "id": call_id,
            "name": name,
            "input": _arguments(function.get("arguments"), f"{param}.arguments", name),
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
        for client_id, param in self._waiting.items():
            quoted = repr(client_id[:MAX_QUOTED])
            refuse(param, f"({quoted}) must be answered by a tool message right after it")
        if self._legacy is not None:
            refuse("messages", f"must answer the function_call of {self._legacy[0]!r}")


def _arguments(arguments: object, param: str, name: str) -> Json:
    if arguments is None or not text(arguments, param).strip():
        return {}
    try:
        document = loads(text(arguments, param))
    except ValueError as error:
        refuse(param, f"of the call of {name!r} must be JSON: {error}")
    if not isinstance(document, dict):
        refuse(param, f"of the call of {name!r} must be a JSON object")
    return document


def _tool_id(client_id: str) -> str:
    """`client_id`, or if upstream does not take it as an id, one that follows from it."""
    if _TOOL_ID.fullmatch(client_id):
        return client_id
    digest = hashlib.sha256(client_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"call_{digest[:32]}"


def _shortest(found: list[Json]) -> str | list[Json]:
    """The content, as a string where one block of plain text is all there is."""
    if len(found) == 1 and found[0].keys() == {"type", "text"}:
        plain: str = found[0]["text"]
        return plain
    return found
