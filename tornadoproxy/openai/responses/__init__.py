"""The translation between OpenAI's Responses API and Anthropic's messages. Sans-io.

It takes and returns dicts and bytes, without a server or a client::

    from tornadoproxy.openai import responses

    document = responses.parse(request_body)
    translation = responses.translate_request(document)
    ...                                          # send translation.body to /v1/messages
    response = responses.translate_message(message, translation)

A stream is translated piece by piece with `StreamTranslator`.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from tornadoproxy.openai.messages_request import requested_model
from tornadoproxy.openai.reading import parse
from tornadoproxy.openai.responses.fields import FIELDS
from tornadoproxy.openai.responses.items import ITEMS, made_id, place_of, shown
from tornadoproxy.openai.responses.output.response import translate_compaction, translate_message
from tornadoproxy.openai.responses.output.stream import StreamTranslator
from tornadoproxy.openai.responses.request import (
    Needs,
    compaction_request,
    needs,
    translate_request,
)
from tornadoproxy.openai.responses.tools import TOOLS
from tornadoproxy.openai.responses.translation import Origin, ToolKind, Translation

__all__ = [
    "FIELDS",
    "ITEMS",
    "TOOLS",
    "Needs",
    "Origin",
    "StreamTranslator",
    "ToolKind",
    "Translation",
    "compaction_request",
    "made_id",
    "needs",
    "parse",
    "place_of",
    "requested_model",
    "shown",
    "translate_compaction",
    "translate_message",
    "translate_request",
]
