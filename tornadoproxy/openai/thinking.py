"""The translation of a reasoning effort into effort and thinking, as far as the model has them.

Source: https://docs.anthropic.com/en/docs/build-with-claude/extended-thinking
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def add_reasoning(
    effort: object,
    param: str,
    body: Json,
    able: Capabilities,
    ignored: list[str],
    *,
    takes_budget: bool,
) -> None:
    """Add a client's reasoning effort to `body`, the upstream's request.

    :param param: the client's name for `effort`, which is the client's value and not ``None``.
    :param ignored: takes `param` if the model has neither effort nor thinking.
    :param takes_budget: whether the conversation may go on with a budget for thinking.
    :raises InvalidRequest: `effort` is not one of `EFFORTS`.
    """
    wanted = one_of(effort, param, EFFORTS)
    # a forced call comes without thinking
    forced = body.get("tool_choice", {}).get("type") in {"any", "tool"}
    thinking = None
    if wanted == "none":
        thinking = _least_thinking(able)
    elif not forced:
        thinking = _thinking(wanted, body["max_tokens"], able, takes_budget=takes_budget)
    # a model that always thinks does so least at the lowest effort
    level = None if wanted == "none" and thinking else able.effort(wanted)
    if level is not None:
        body["output_config"] = {"effort": level, **body.get("output_config", {})}
    if thinking is not None:
        body.setdefault("thinking", thinking)
    elif level is None and "thinking" not in body:
        ignored.append(param)


def _least_thinking(able: Capabilities) -> Json | None:
    least = next((kind for kind in ("disabled", "between_tools") if kind in able.thinking), None)
    return {"type": least} if least else None


def _thinking(
    effort: str, max_tokens: int, able: Capabilities, *, takes_budget: bool
) -> Json | None:
    if "adaptive" in able.thinking:
        return {"type": "adaptive", "display": "summarized"}
    budget = min(_BUDGETS[effort], max_tokens // 2)
    if "enabled" in able.thinking and budget >= _BUDGETS["minimal"] and takes_budget:
        return {"type": "enabled", "budget_tokens": budget}
    return None
