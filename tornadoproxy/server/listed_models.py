"""The models that OpenAI clients can name, for commands."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from tornadoproxy.config.chat_settings import CHAT_MODELS
from tornadoproxy.config.core_settings import MODELS
from tornadoproxy.errors import ConfigurationError, UpstreamError
from tornadoproxy.protocol.dialects import read_error
from tornadoproxy.upstream.model_list import Model, ModelList, UpstreamRefused
from tornadoproxy.upstream.pool import UpstreamPool

if TYPE_CHECKING:
    from tornadoproxy.config.settings import Settings
    from tornadoproxy.plugin.manager import Plugins


async def listed_models(settings: Settings, plugins: Plugins) -> dict[str, Model]:
    """Return the upstream's entry for each name of a model that OpenAI clients can send.

    First come the upstream's own names, then those of ``CHAT_MODELS`` and ``MODELS``. A model that
    the upstream does not list has an entry with its ``id`` only.

    :raises ConfigurationError: the upstream does not list its models.
    """
    pool = UpstreamPool(settings, plugins.upstreams, plugins.upstreams_order)
    target = pool.lister()

    async def get(path: str) -> tuple[int, bytes]:
        if target is None:
            return 200, pool.models_of_settings()
        return await target.ask(path, instance=secrets.token_hex(8))

    try:
        models = await ModelList(get).models()
    except UpstreamRefused as refused:
        if refused.status == 401 and target is not None:
            raise ConfigurationError(target.upstream.key_fault()) from None
        _, message = read_error(refused.body)
        raise ConfigurationError(
            f"the upstream responded to GET /v1/models with {refused.status}: {message}"
        ) from None
    except UpstreamError as error:
        raise ConfigurationError(
            f"the upstream's models are unknown: {error.message} "
            "Find the cause with `tornadoproxy check --online`."
        ) from None
    finally:
        pool.close()
    names = {**settings[MODELS], **settings[CHAT_MODELS]}
    own = {
        name: models.get(upstream_name, {"id": upstream_name})
        for name, upstream_name in names.items()
        if name != "*" and name not in models
    }
    return {**models, **own}
