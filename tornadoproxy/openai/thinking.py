"""The translation of a reasoning effort into effort and thinking, as far as the model has them.

Source: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy.openai.reading import Json, one_of

if TYPE_CHECKING:
    from tornadoproxy.openai.models import Capabilities

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")

BLOCKS = {"thinking": ("thinking", "signature"), "redacted_thinking": ("data",)}
"""The types of thinking blocks with their fields; the last field is signed by the upstream."""

_BUDGETS = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 24576,
    "max": 32000,
}


class Reasoning(NamedTuple):
    """The reasoning that a client asks for.

    :param effort: the client's value; ``None`` leaves the effort to the model.
    :param param: the client's name for `effort`.
    :param is_shown: whether the response shows a summary of the thinking.
    """

    effort: object
    param: str
    is_shown: bool = True


def add_reasoning(
    reasoning: Reasoning,
    body: Json,
    able: Capabilities,
    ignored: list[str],
    *,
    takes_budget: bool,
) -> None:
    """Add a client's reasoning to `body`, the upstream's request.

    :param ignored: takes the name of the effort if the model has neither effort nor thinking.
    :param takes_budget: whether the conversation may go on with a budget for thinking.
    :raises InvalidRequest: the effort is not one of `EFFORTS`.
    """
    effort, param, is_shown = reasoning
    wanted = None if effort is None else one_of(effort, param, EFFORTS)
    # a forced call comes without thinking
    forced = body.get("tool_choice", {}).get("type") in {"any", "tool"}
    thinking: Json | None = None
    if wanted == "none":
        thinking = _least_thinking(able)
    elif not forced and "adaptive" in able.thinking:
        thinking = {"type": "adaptive", "display": "summarized" if is_shown else "omitted"}
    elif not forced and wanted is not None and takes_budget:
        thinking = _budget(wanted, body["max_tokens"], able)
    # a model that always thinks does so least at the lowest effort
    level = able.effort(wanted) if wanted and not (wanted == "none" and thinking) else None
    if level is not None:
        body["output_config"] = {"effort": level, **body.get("output_config", {})}
    if thinking is not None:
        body.setdefault("thinking", thinking)
    elif wanted and level is None and "thinking" not in body:
        ignored.append(param)


def _least_thinking(able: Capabilities) -> Json | None:
    least = next((kind for kind in ("disabled", "between_tools") if kind in able.thinking), None)
    return {"type": least} if least else None


def _budget(effort: str, max_tokens: int, able: Capabilities) -> Json | None:
    budget = min(_BUDGETS[effort], max_tokens // 2)
    if "enabled" in able.thinking and budget >= _BUDGETS["minimal"]:
        return {"type": "enabled", "budget_tokens": budget}
    return None
