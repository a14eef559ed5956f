"""``codex-catalog``: the catalog of models that the Codex CLI reads, ``model_catalog_json``.

For a model that Codex does not know it guesses the context window, shows no efforts, and offers no
tool for patches. A catalog describes the models. It replaces the one in Codex, which then lists
these models only.

Source: https://github.com/openai/codex, ``codex-rs/protocol/src/openai_models.rs`` (``ModelInfo``)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tornadoproxy.cli.codex_instructions import INSTRUCTIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

_CONTEXT_WINDOW = 200_000
"""The context window of a model whose entry does not name it: the smallest of Claude's."""

_EFFORTS = {
    "low": "fast, with little thinking",
    "medium": "less thinking than usual",
    "high": "as much thinking as usual",
    "xhigh": "more thinking, for long tasks",
    "max": "as much thinking as possible",
}
_DEFAULT_EFFORT = "high"  # that of Anthropic's API
_NEW_MODEL = ("low", "medium", "high")  # the efforts of a model whose entry does not name them

_COMMON: dict[str, Any] = {  # Any: JSON
    "shell_type": "unified_exec",
    "visibility": "list",
    "supported_in_api": True,
    "support_verbosity": False,
    "apply_patch_tool_type": "freeform",
    "web_search_tool_type": "text",
    # how much output of a command a model gets to see; the same as for OpenAI's models
    "truncation_policy": {"mode": "tokens", "limit": 10_000},
    "supports_parallel_tool_calls": True,
    "experimental_supported_tools": [],
    # a search for tools would change the list of tools, and so invalidate the prompt cache
    "supports_search_tool": False,
    "base_instructions": INSTRUCTIONS,
}


def catalog_text(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the catalog as JSON.

    :param models: the upstream's entry for each name of a model, the best first. Retired models are
        left out.
    """
    listed = {name: entry for name, entry in models.items() if entry.get("lifecycle") != "retired"}
    entries = [
        _entry(name, entry, priority) for priority, (name, entry) in enumerate(listed.items(), 1)
    ]
    return json.dumps({"models": entries}, indent=1)


def _entry(name: str, model: Mapping[str, Any], priority: int) -> dict[str, Any]:
    upstream_name = model["id"]
    shown = model.get("display_name") or upstream_name
    capabilities = _object(model.get("capabilities"))
    efforts = _efforts(capabilities)
    window = model.get("max_input_tokens")
    window = window if type(window) is int and window > 0 else _CONTEXT_WINDOW
    default = {"default_reasoning_level": _DEFAULT_EFFORT} if _DEFAULT_EFFORT in efforts else {}
    sees = _supported(capabilities, "image_input") or not capabilities
    return {
        "slug": name,
        "display_name": shown if name == upstream_name else f"{name} ({shown})",
        "description": f"{upstream_name}, {window:,} tokens of context",
        **default,
        "supported_reasoning_levels": [
            {"effort": effort, "description": _EFFORTS[effort]} for effort in efforts
        ],
        "supports_reasoning_summaries": bool(efforts),
        "default_reasoning_summary": "auto" if efforts else "none",
        "priority": priority,
        "context_window": window,
        "max_context_window": window,
        "input_modalities": ["text", "image"] if sees else ["text"],
        **_COMMON,
    }


def _efforts(capabilities: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the efforts of a model, or those that become a budget for its thinking."""
    if not capabilities:
        return _NEW_MODEL
    effort = _object(capabilities.get("effort"))
    if _supported(capabilities, "effort"):
        return tuple(level for level in _EFFORTS if _supported(effort, level))
    return _NEW_MODEL if _supported(capabilities, "thinking") else ()


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _supported(given: Mapping[str, Any], name: str) -> bool:
    return _object(given.get(name)).get("supported") is True
