"""The events of a streamed response: which are sent, and how they are written.

Source: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.treatment import Table, Treatment, table
from tornadoproxy.openai.writing import encode, encode_string

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json

EVENTS: Table = table(
    {
        Treatment.SENT: {
            "error": "before `response.failed`; clients of either kind read one of the two",
            "response.completed": "",
            "response.content_part.added": "",
            "response.content_part.done": "",
            "response.created": "",
            "response.custom_tool_call_input.delta": "",
            "response.custom_tool_call_input.done": "",
            "response.failed": "",
            "response.function_call_arguments.delta": "",
            "response.function_call_arguments.done": "",
            "response.in_progress": "",
            "response.incomplete": "",
            "response.output_item.added": "",
            "response.output_item.done": "not for an item that was cut",
            "response.output_text.annotation.added": "",
            "response.output_text.delta": "",
            "response.output_text.done": "",
            "response.reasoning_summary_part.added": "",
            "response.reasoning_summary_part.done": "",
            "response.reasoning_summary_text.delta": "",
            "response.reasoning_summary_text.done": "",
            "response.refusal.delta": "",
            "response.refusal.done": "",
            "response.web_search_call.completed": "",
            "response.web_search_call.in_progress": "",
            "response.web_search_call.searching": "",
        },
        Treatment.NEVER_SENT: {
            **dict.fromkeys(
                (
                    "response.audio.delta",
                    "response.audio.done",
                    "response.audio.transcript.delta",
                    "response.audio.transcript.done",
                ),
                "there is no audio output",
            ),
            **dict.fromkeys(
                (
                    "response.code_interpreter_call.completed",
                    "response.code_interpreter_call.in_progress",
                    "response.code_interpreter_call.interpreting",
                    "response.code_interpreter_call_code.delta",
                    "response.code_interpreter_call_code.done",
                    "response.file_search_call.completed",
                    "response.file_search_call.in_progress",
                    "response.file_search_call.searching",
                    "response.image_generation_call.completed",
                    "response.image_generation_call.generating",
                    "response.image_generation_call.in_progress",
                    "response.image_generation_call.partial_image",
                    "response.mcp_call.completed",
                    "response.mcp_call.failed",
                    "response.mcp_call.in_progress",
                    "response.mcp_call_arguments.delta",
                    "response.mcp_call_arguments.done",
                    "response.mcp_list_tools.completed",
                    "response.mcp_list_tools.failed",
                    "response.mcp_list_tools.in_progress",
                ),
                "the tool is refused",
            ),
            **dict.fromkeys(
                (
                    "response.shell_call_command.added",
                    "response.shell_call_command.delta",
                    "response.shell_call_command.done",
                ),
                "the item has the commands",
            ),
            **dict.fromkeys(
                (
                    "response.shell_call_output_content.delta",
                    "response.shell_call_output_content.done",
                ),
                "the client runs the commands",
            ),
            "response.compaction.compacting": "the item is sent when its summary is complete",
            "response.queued": "responses in the background are refused",
            "response.reasoning_text.delta": "thinking is sent as a summary",
            "response.reasoning_text.done": "thinking is sent as a summary",
        },
    }
)
"""The treatment of each event of OpenAI's, with a note for the documentation."""

KEEPALIVE = "keepalive"
"""OpenAI's own event for a quiet stream, which its types do not have.

Clients that time out a quiet stream count events, and no comments. An event of the types would
change the client's copy of the response.

Source: https://github.com/openai/openai-node/issues/1964
"""


class EventWriter:
    """Writer of events, which it numbers.

    :cvar is_silent: whether it writes none.
    """

    is_silent = False

    def __init__(self) -> None:
        self._number = 0

    def event(self, kind: str, fields: Json) -> bytes:
        """Return the next event."""
        number = self._number
        self._number = number + 1
        document = encode({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), document)

    def head(self, kind: str, fields: Json) -> bytes:
        """Return what the deltas of one item have in common."""
        document = encode({"type": kind, **fields})
        return b'event: %b\ndata: %b,"sequence_number":' % (kind.encode(), document[:-1])

    def delta(self, head: bytes, delta: str) -> bytes:
        """Return the next event, a delta; see `head`."""
        number = self._number
        self._number = number + 1
        return b'%b%d,"delta":%b}\n\n' % (head, number, encode_string(delta))


class NoEvents(EventWriter):
    """Writer for a response that is not streamed."""

    is_silent = True

    def event(self, kind: str, fields: Json) -> bytes:
        return b""

    def head(self, kind: str, fields: Json) -> bytes:
        return b""

    def delta(self, head: bytes, delta: str) -> bytes:
        return b""
