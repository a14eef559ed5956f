"""Models: what each can do, and OpenAI's list of them.

Sources: https://docs.anthropic.com/en/api/models-list (``capabilities``) and
https://platform.openai.com/docs/api-reference/models
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tornadoproxy.openai.options import Options
    from tornadoproxy.openai.reading import Json

# The list does not say this of a model. Only Anthropic's own list has capabilities, and the clouds,
# which do not accept system messages among the others, have lists of their own.
# Source: https://platform.claude.com/docs/en/build-with-claude/mid-conversation-system-messages
_SYSTEM_MESSAGES = re.compile(r"claude-(?:opus-(?:4-8|5)|fable-5|mythos-5)(?![0-9])")

_LEVELS = ("low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Capabilities of a model that a translation depends on; by default, those of all new models.

    :param max_tokens: the most tokens of a response; ``None`` if unknown.
    :param structured_outputs: whether formats and strict tools are supported.
    :param forced_tools: whether the model can be forced to call a tool.
    :param thinking: the ``type`` values that are accepted for ``thinking``.
    :param system_messages: whether a system message may follow a user's; if unknown, it may not.
    :param efforts: the supported levels of effort, from low to max; empty if there are none.
    """

    max_tokens: int | None = None
    structured_outputs: bool = True
    forced_tools: bool = True
    thinking: frozenset[str] = frozenset({"adaptive"})
    system_messages: bool = False
    efforts: tuple[str, ...] = ("low", "medium", "high")

    @classmethod
    def of_model(cls, model: dict[str, Any]) -> Capabilities:  # Any: JSON from upstream
        """Read an entry of the upstream's list; what it does not say is as with new models."""
        given = _object(model.get("capabilities"))
        limit = model.get("max_tokens")
        max_tokens = limit if isinstance(limit, int) and limit > 0 else None
        if not given:
            return cls(max_tokens=max_tokens)
        types = _object(_object(given.get("thinking")).get("types"))
        effort = _object(given.get("effort"))
        thinking = frozenset(name for name in types if _supported(types, name))
        return cls(
            max_tokens=max_tokens,
            structured_outputs=_supported(given, "structured_outputs"),
            # The list lacks this one. Models that always think refuse a forced call, since it comes
            # without thinking; all others accept it.
            forced_tools=not thinking or "disabled" in thinking,
            thinking=thinking,
            system_messages=bool(_SYSTEM_MESSAGES.match(str(model.get("id")))),
            efforts=tuple(
                level
                for level in _LEVELS
                if _supported(given, "effort") and _supported(effort, level)
            ),
        )

    def effort(self, wanted: str) -> str | None:
        """Return the highest level up to `wanted`, else the lowest; ``None`` if there is none."""
        order = ("none", "minimal", *_LEVELS)
        below = [level for level in self.efforts if order.index(level) <= order.index(wanted)]
        return below[-1] if below else next(iter(self.efforts), None)


def translate_models(models: Iterable[Json], names: Mapping[str, str] | None = None) -> Json:
    """Return OpenAI's list of `models`, which are entries of the upstream's.

    :param names: the upstream's name for each name that clients may use instead (``CHAT_MODELS``);
        these are listed too.
    """
    entries = [translate_model(model) for model in models]
    known = {entry["id"]: entry for entry in entries}
    for name, upstream_name in (names or {}).items():
        if name != "*" and name not in known:
            entries.append({**known.get(upstream_name, _entry(upstream_name, 0)), "id": name})
    return {"object": "list", "data": entries}


def find_model(models: Iterable[Json], name: str, options: Options) -> Json | None:
    """Return OpenAI's description of the model that serves a client's `name`, if there is one.

    :param models: entries of the upstream's list.
    """
    known = {entry["id"]: entry for entry in translate_models(models, options.models)["data"]}
    if name not in known and (upstream_name := options.model(name)) != name:  # by way of *
        return {**known.get(upstream_name, _entry(upstream_name, 0)), "id": name}
    return known.get(name)


def translate_model(model: Json) -> Json:
    """Return OpenAI's description of a model, an entry of the upstream's list."""
    return _entry(str(model.get("id", "")), _seconds(model.get("created_at")))


def _entry(name: str, created: int) -> Json:
    return {"id": name, "object": "model", "created": created, "owned_by": "anthropic"}


def _seconds(time: object) -> int:
    try:
        return max(0, int(datetime.fromisoformat(str(time)).timestamp()))
    except (ValueError, OverflowError):
        return 0


def _object(value: object) -> dict[str, Any]:  # Any: JSON from upstream
    return value if isinstance(value, dict) else {}


def _supported(given: dict[str, Any], name: str) -> bool:  # Any: JSON from upstream
    return _object(given.get(name)).get("supported") is True
