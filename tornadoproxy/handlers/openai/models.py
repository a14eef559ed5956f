"""``GET /openai/v1/models`` and ``/models/{id}``: the upstream's models, in OpenAI's form."""

from __future__ import annotations

import json
from functools import partial
from urllib.parse import unquote

from tornadoproxy.errors import MethodNotAllowed, NotFound
from tornadoproxy.handlers.exchange_handler import ExchangeHandler
from tornadoproxy.openai.errors import translate_error
from tornadoproxy.openai.models import find_model, translate_models
from tornadoproxy.plugin.decisions import all_allow
from tornadoproxy.upstream.model_list import UpstreamRefused


class ModelsHandler(ExchangeHandler):
    """The upstream's models, all or one."""

    def admit(self) -> None:
        if self.request.method not in {"GET", "HEAD"}:
            raise MethodNotAllowed("Use GET for models.", ["GET", "HEAD"])
        self.refuse_body()

    async def serve(self) -> None:
        allowed = partial(all_allow, await self.allowed_models())
        try:
            models = await self.gateway.models.models()
        except UpstreamRefused as refused:
            if not self.ended:
                self.write_error_response(translate_error(refused.status, refused.body))
                self.end()
            return
        if self.ended:
            return
        options = self.gateway.chat_options
        found = [model for name, model in models.items() if allowed(name)]
        names = {name: model for name, model in options.models.items() if allowed(model)}
        wanted = unquote(self.request.path.partition("/models")[2][1:])
        shown = None
        if not wanted:
            shown = translate_models(found, names)
        elif allowed(options.model(wanted)):
            shown = find_model(found, wanted, options)
        if shown is None:
            raise NotFound(
                f"The model '{wanted[:100]}' does not exist or you do not have access to it.",
                code="model_not_found",
                param="model",
            )
        self.set_header(self.dialect.request_id_header, self.request_id)
        self.set_header("Cache-Control", "no-store")
        self.write(json.dumps(shown).encode())
        self.end()
