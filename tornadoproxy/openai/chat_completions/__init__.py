"""The translation between OpenAI's chat completions and Anthropic's messages. Sans-io.

It takes and returns dicts and bytes, without a server or a client::

    from tornadoproxy.openai import chat_completions

    document = chat_completions.parse(request_body)
    translation = chat_completions.translate_request(document)
    ...                                          # send translation.body to /v1/messages
    response = chat_completions.translate_response(
        response_body, legacy_functions=translation.legacy_functions
    )

A stream is translated piece by piece with `StreamTranslator`, an error with `translate_error`.
"""

from tornadoproxy.openai.chat_completions.fields import FIELDS
from tornadoproxy.openai.chat_completions.request import (
    Translation,
    depends_on_capabilities,
    translate_request,
)
from tornadoproxy.openai.chat_completions.response import translate_message, translate_response
from tornadoproxy.openai.chat_completions.stream import StreamTranslator
from tornadoproxy.openai.errors import translate_error
from tornadoproxy.openai.message import read_message
from tornadoproxy.openai.messages_request import requested_model
from tornadoproxy.openai.models import Capabilities, find_model, translate_model, translate_models
from tornadoproxy.openai.options import Options
from tornadoproxy.openai.reading import parse
from tornadoproxy.openai.treatment import Treatment

__all__ = [
    "FIELDS",
    "Capabilities",
    "Options",
    "StreamTranslator",
    "Translation",
    "Treatment",
    "depends_on_capabilities",
    "find_model",
    "parse",
    "read_message",
    "requested_model",
    "translate_error",
    "translate_message",
    "translate_model",
    "translate_models",
    "translate_request",
    "translate_response",
]
