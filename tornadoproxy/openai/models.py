"""Translates upstream's list of models.

Source: https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tornadoproxy.openai.chat_completions.request import Options
    from tornadoproxy.openai.reading import Json


def translate_models(models: Iterable[Json], names: Mapping[str, str] | None = None) -> Json:
    """OpenAI's list of `models`, entries of upstream's.

    :param names: names that clients may use instead (``CHAT_MODELS``); they are listed too.
    """
    entries = [translate_model(model) for model in models]
    known = {entry["id"]: entry for entry in entries}
    for name, upstream_name in (names or {}).items():
        if name != "*" and name not in known:
            entries.append({**known.get(upstream_name, _entry(upstream_name, 0)), "id": name})
    return {"object": "list", "data": entries}


def find_model(models: Iterable[Json], name: str, options: Options) -> Json | None:
    """OpenAI's description of the model that serves a client's `name`, if there is one.

    :param models: entries of upstream's list.
    """
    known = {entry["id"]: entry for entry in translate_models(models, options.models)["data"]}
    if name not in known and (upstream_name := options.model(name)) != name:  # by way of *
        return {**known.get(upstream_name, _entry(upstream_name, 0)), "id": name}
    return known.get(name)


def translate_model(model: Json) -> Json:
    """OpenAI's description of a model, an entry of upstream's list."""
    return _entry(str(model.get("id", "")), _seconds(model.get("created_at")))


def _entry(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "anthropic"}


def _seconds(time: object) -> int:
    try:
        return max(0, int(datetime.fromisoformat(str(time)).timestamp()))
    except (ValueError, OverflowError):
        return 0
