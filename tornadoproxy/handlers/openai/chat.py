"""``POST /openai/v1/chat/completions``; see `tornadoproxy.openai.chat_completions`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tornadoproxy.errors import MethodNotAllowed
from tornadoproxy.handlers.openai.translating import TranslatingHandler
from tornadoproxy.openai import chat_completions
from tornadoproxy.openai.chat_completions import StreamTranslator, Translation

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json


class ChatHandler(TranslatingHandler[Translation, StreamTranslator]):
    """One chat completion."""

    def holds(self, length: int, *, chunked: bool) -> bool:
        if self.request.method != "POST":
            raise MethodNotAllowed("Use POST for chat completions.", ["POST"])
        return super().holds(length, chunked=chunked)

    async def serve_document(self, size: int, document: Json) -> None:
        options = self.gateway.chat_options
        translate = partial(chat_completions.translate_request, document, options=options)
        needs_models = chat_completions.depends_on_capabilities(document, options)
        await self.ask(
            size,
            chat_completions.requested_model(document),
            translate,
            needs_models=needs_models,
        )

    def stream_translator(self, translation: Translation) -> StreamTranslator:
        return StreamTranslator(
            include_usage=translation.include_usage,
            legacy_functions=translation.legacy_functions,
        )

    def respond(self, translation: Translation, message: Json) -> None:
        self.end_with(
            chat_completions.translate_message(
                message, legacy_functions=translation.legacy_functions
            )
        )
