"""What a model can do, as upstream's list of models tells it.

Source: https://docs.anthropic.com/en/api/models-list (``capabilities``)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LEVELS = ("low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What matters for translating. The defaults are what all of today's models can do.

    :param max_tokens: the most that an answer can have; ``None`` if it is not known.
    :param structured_outputs: for formats, and for strict tools.
    :param forced_tools: the model can be made to call a tool.
    :param thinking: the ``type`` values that it takes for ``thinking``.
    :param efforts: the levels of effort, from low to max; empty if it has none.
    """

    max_tokens: int | None = None
    structured_outputs: bool = True
    forced_tools: bool = True
    thinking: frozenset[str] = frozenset({"adaptive"})
    efforts: tuple[str, ...] = ("low", "medium", "high")

    @classmethod
    def of_model(cls, model: dict[str, Any]) -> Capabilities:  # Any: JSON from upstream
        """What an entry of the list says; what it does not say is as with today's models."""
        told = _object(model.get("capabilities"))
        limit = model.get("max_tokens")
        max_tokens = limit if isinstance(limit, int) and limit > 0 else None
        if not told:
            return cls(max_tokens=max_tokens)
        types = _object(_object(told.get("thinking")).get("types"))
        effort = _object(told.get("effort"))
        thinking = frozenset(name for name in types if _supported(types, name))
        return cls(
            max_tokens=max_tokens,
            structured_outputs=_supported(told, "structured_outputs"),
            # The list does not tell of this one. Models that always think refuse it, since a call
            # that is forced comes without thinking; all others take it.
            forced_tools=not thinking or "disabled" in thinking,
            thinking=thinking,
            efforts=tuple(
                level
                for level in _LEVELS
                if _supported(told, "effort") and _supported(effort, level)
            ),
        )

    def effort(self, wanted: str) -> str | None:
        """The highest level that is not above `wanted`, else the lowest; ``None`` if none."""
        order = ("none", "minimal", *_LEVELS)
        below = [level for level in self.efforts if order.index(level) <= order.index(wanted)]
        return below[-1] if below else next(iter(self.efforts), None)


def _object(value: object) -> dict[str, Any]:  # Any: JSON from upstream
    return value if isinstance(value, dict) else {}


def _supported(told: dict[str, Any], name: str) -> bool:  # Any: JSON from upstream
    return _object(told.get(name)).get("supported") is True
