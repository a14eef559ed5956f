"""The translation of input items: turns, calls with their outputs, and carried blocks.

The theory. The input is a flat list of items. User, system and developer messages and the outputs
of calls belong to the user, all else to the assistant; adjacent items of one role become one
turn. A call and its output have the same ``call_id``. The upstream wants all results of a turn's
calls first in the user's turn that follows, so an output stands there, wherever it is listed.

A carried block stands where its item stands. Of those, thinking at the end of a turn is dropped,
and so are calls of the upstream's own tools without a result: the upstream refuses both. Only a
turn that stands last may end with such a call: the upstream goes on there (``pause_turn``).

System and developer messages at the beginning are the system prompt. A later one is a system
message after the user's turn, if the model accepts that: what stands before it stays cached.
Otherwise it joins the system prompt.

Source: https://platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy.openai.content import text_block
from tornadoproxy.openai.reading import MAX_QUOTED, Json, one_of, refuse, text
from tornadoproxy.openai.responses import carrier, parts
from tornadoproxy.openai.responses.calls import CALLS, OUTPUTS, call_of_item, output_of_item
from tornadoproxy.openai.turns import (
    CONTINUING,
    Conversation,
    Turns,
    drop_last_thinking,
    tool_result,
)

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities
    from tornadoproxy.openai.responses.items import Listed
    from tornadoproxy.openai.responses.translation import Origin

_KINDS = {
    "user": parts.IN_USER,
    "assistant": parts.IN_ASSISTANT,
    "system": parts.IN_SYSTEM,
    "developer": parts.IN_SYSTEM,
}

SUMMARIZE = """\
Write a summary of the conversation so far. It replaces the conversation: the model that goes on \
has the user's messages and your summary, and nothing else. Say what the user wants, with every \
constraint and preference; what was decided, and why; what was done and found, with the exact \
spelling of files, names, commands, results and errors; what remains, and the next step. Call no \
tool. Write only the summary."""

SUMMARY = "Summary of the conversation before this point, which it replaces:\n\n"
UNREADABLE = "(The conversation before this point was compacted by another model and is not known.)"


def translate(
    listed: Sequence[Listed],
    able: Capabilities,
    origins: Mapping[str, Origin],
    ignored: list[str],
    instructions: str | None = None,
    *,
    prefill: bool = False,
) -> Conversation:
    """Translate a request's items, among which there are no references.

    :param origins: the client's tool for each name of a tool that is offered.
    :param ignored: takes the names of what is dropped.
    :param instructions: the text that the system prompt begins with.
    :param prefill: whether the model continues an assistant message that stands last.
    :raises InvalidRequest: an item is invalid; the error names it.
    """
    translator = _Translator(listed, able, origins, ignored)
    if instructions:
        translator.turns.instruct([text_block(instructions)])
    for position in range(len(listed)):
        translator.take(position)
    return translator.finish(prefill=prefill)


class _Call(NamedTuple):
    id: str  # upstream's
    quoted_id: str  # the client's
    param: str
    output: Listed | None


class _Translator:
    def __init__(
        self,
        listed: Sequence[Listed],
        able: Capabilities,
        origins: Mapping[str, Origin],
        ignored: list[str],
    ) -> None:
        self.turns = Turns()
        self._listed = listed
        self._able = able
        self._origins = origins
        self._ignored = ignored
        self._room = carrier.Room()
        self._turn: list[Json] = []  # the assistant's, that is open
        self._calls: list[_Call] = []  # of that turn
        self._is_carrying = False  # in that turn
        self._searches = 0  # that are shown, less those that are carried
        self._instructions: list[Json] = []  # for after the user's turn that is open
        self._outputs = _Outputs(listed)

    def take(self, position: int) -> None:
        item, kind, param = self._listed[position]
        if kind == "message":
            self._take_message(item, param)
        elif kind in CALLS:
            self._take_call(item, param)
        elif kind in OUTPUTS:
            self._close_assistant()
            if not self._outputs.is_taken(position):
                refuse(param, f"has no call: no item before it has {_quoted_id(_call_id(item))}")
        elif kind == "reasoning":
            self._take_reasoning(item, param)
        elif kind == "web_search_call":
            self._searches += 1
        elif kind == "compaction":
            self._add_user([text_block(self._summary(item, param))])
        elif kind == "compaction_trigger":
            if position != len(self._listed) - 1:
                refuse(param, "(a compaction_trigger) must be the last item")
            self._add_user([text_block(SUMMARIZE)])
        # additional_tools and configuration_update have no place in a conversation

    def finish(self, *, prefill: bool) -> Conversation:
        last = self._turn[-1]["type"] if self._turn else ""
        is_paused = last == "server_tool_use" and not self._calls
        self._close_assistant(is_paused=is_paused)
        self._close_user()
        if self._searches > 0:
            self._ignored.append("input.web_search_call")
        return self.turns.finish(prefill=is_paused or (prefill and last == "text"))

    def _take_message(self, item: Json, param: str) -> None:
        role = one_of(item.get("role"), f"{param}.role", _KINDS)
        found = parts.blocks(item.get("content"), f"{param}.content", _KINDS[role], self._ignored)
        if role == "user":
            self._add_user(found)
        elif role == "assistant":
            self._turn += found
        elif self._able.system_messages and (self.turns.last_role or self._turn):
            self._close_assistant()
            self._instructions += found
        else:
            self.turns.instruct(found)

    def _take_call(self, item: Json, param: str) -> None:
        client_id = text(item.get("call_id"), f"{param}.call_id")
        name, tool_input = call_of_item(item, param, self._origins)
        block = self.turns.call(client_id, name, tool_input)
        self._turn.append(block)
        output = self._outputs.take(client_id)
        self._calls.append(_Call(block["id"], _quoted_id(client_id), param, output))

    def _take_reasoning(self, item: Json, param: str) -> None:
        blocks = None
        if item.get("encrypted_content"):
            where = f"{param}.encrypted_content"
            blocks = carrier.unpack(text(item["encrypted_content"], where), where, self._room)
        if blocks is None:
            self._ignored.append("input.reasoning")
            return
        # of a stream that was cut: thinking without a signature is refused upstream
        whole = [block for block in blocks if block.get("signature", "signed")]
        if len(whole) < len(blocks):
            self._ignored.append("input.reasoning")
        self._searches -= len([block for block in whole if block["type"] == "server_tool_use"])
        self._turn += whole
        self._is_carrying = True

    def _summary(self, item: Json, param: str) -> str:
        where = f"{param}.encrypted_content"
        carried = text(item.get("encrypted_content"), where)
        summary = carrier.unpack_summary(carried, where, self._room)
        if summary is None:
            self._ignored.append("input.compaction")
            return UNREADABLE
        return SUMMARY + summary

    def _add_user(self, blocks: list[Json]) -> None:
        self._close_assistant()
        self.turns.add("user", blocks)

    def _close_user(self) -> None:
        """Add the instructions that came during the user's turn after it."""
        if self._instructions:
            if self.turns.last_role != "user":
                self.turns.add("user", [text_block(CONTINUING)])
            self.turns.add("system", self._instructions)
            self._instructions = []

    def _close_assistant(self, *, is_paused: bool = False) -> None:
        """Add the assistant's turn that is open, and the results of its calls.

        :param is_paused: whether the model goes on with it, and runs its last search.
        """
        if not self._turn:
            return
        cleans = self._is_carrying and not is_paused
        turn = _answered(self._turn) if cleans else self._turn
        if cleans and (drop_last_thinking(turn) or len(turn) < len(self._turn)):
            self._ignored.append("input.reasoning")
        if turn:
            self._close_user()
            self.turns.add("assistant", turn)
        for call in self._calls:
            if call.output is None:
                refuse(call.param, f"has no output: no item after it has {call.quoted_id}")
            item, _, param = call.output
            found = output_of_item(item, param, self._ignored)
            self.turns.add("user", [tool_result(call.id, found)])
        self._turn, self._calls, self._is_carrying = [], [], False


class _Outputs:
    """The outputs in a list of items; each answers the last call of its id before it."""

    def __init__(self, listed: Sequence[Listed]) -> None:
        self._listed = listed
        self._taken: set[int] = set()
        self._positions: dict[str, list[int]] = {}
        for position in reversed(range(len(listed))):
            item, kind, _ = listed[position]
            if kind in OUTPUTS:
                self._positions.setdefault(_call_id(item), []).append(position)

    def take(self, client_id: str) -> Listed | None:
        """Return the output of a call; ``None`` if there is none.

        An output before its call was refused already, so the first that is left is after it.
        """
        positions = self._positions.get(client_id)
        if not positions:
            return None
        position = positions.pop()
        self._taken.add(position)
        return self._listed[position]

    def is_taken(self, position: int) -> bool:
        """Whether the output at `position` answers a call."""
        return position in self._taken


def _answered(turn: list[Json]) -> list[Json]:
    """Return a turn without calls of the upstream's tools that lack a result, or the reverse."""
    calls = {block["id"] for block in turn if block["type"] == "server_tool_use"}
    results = {block["tool_use_id"] for block in turn if block["type"] == "web_search_tool_result"}
    return [
        block
        for block in turn
        if (block["type"] != "server_tool_use" or block["id"] in results)
        and (block["type"] != "web_search_tool_result" or block["tool_use_id"] in calls)
    ]


def _call_id(item: Json) -> str:
    """Return the id of the call that an output answers; a local shell's has it as its own id."""
    call_id = item.get("call_id")
    if call_id is None and item["type"] == "local_shell_call_output":
        call_id = item.get("id")
    return call_id if isinstance(call_id, str) else ""


def _quoted_id(call_id: str) -> str:
    return f"the call_id {call_id[:MAX_QUOTED]!r}"
