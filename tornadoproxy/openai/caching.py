"""The translation of prompt caching: a client's own marks, or a cache for a request without any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tornadoproxy.openai.reading import Json, obj, text

if TYPE_CHECKING:
    from tornadoproxy.openai.options import Options


def cache_control(holder: Json, param: str, ignored: list[str]) -> Json | None:
    """Return the ``cache_control`` of a part, message or tool; ``None`` if it marks no cache.

    It is Anthropic's own, or stands for OpenAI's breakpoint. A breakpoint's lifetime is a minimum,
    by default half an hour; it becomes one hour, the longest that there is.

    :param ignored: takes the names of what is dropped.
    """
    if holder.get("cache_control") is not None:
        return obj(holder["cache_control"], f"{param}.cache_control")
    if holder.get("prompt_cache_breakpoint") is None:
        return None
    marked = obj(holder["prompt_cache_breakpoint"], f"{param}.prompt_cache_breakpoint")
    if marked.get("ttl") not in (None, "30m"):
        ignored.append("prompt_cache_breakpoint.ttl")
    return {"type": "ephemeral", "ttl": "1h"}


def cache_request(document: Json, body: Json, options: Options, ignored: list[str]) -> None:
    """Cache a request that marks nothing to be cached, as OpenAI's API does by itself.

    A cache write costs more than plain input, so it pays only if another turn will read it: if
    there are tools, an assistant message, or a ``prompt_cache_key``.

    :param body: the upstream's request, complete but for this.
    """
    retention = document.get("prompt_cache_retention")
    settings = document.get("prompt_cache_options")
    settings = {} if settings is None else obj(settings, "prompt_cache_options")
    is_long = retention == "24h" or settings.get("ttl") == "30m"
    key = document.get("prompt_cache_key")
    has_key = key is not None and text(key, "prompt_cache_key") != ""
    is_read_again = (
        options.cache == "always"
        or is_long
        or "tools" in body
        or len(body["messages"]) > 2
        or has_key
    )
    is_cached = (
        options.cache != "off"
        and settings.get("mode") != "explicit"
        and is_read_again
        and not _is_marked(body)
    )
    if is_cached:
        body["cache_control"] = {"type": "ephemeral", **({"ttl": "1h"} if is_long else {})}
    if retention not in (None, "in_memory") and not (is_cached and retention == "24h"):
        ignored.append("prompt_cache_retention")
    if settings.get("ttl") is not None and not (is_cached and settings["ttl"] == "30m"):
        ignored.append("prompt_cache_options.ttl")


def _is_marked(body: Json) -> bool:
    """Whether the client marked what to cache."""
    holders = [body, *body.get("tools", ()), *_listed(body.get("system"))]
    for message in body["messages"]:
        for block in _listed(message["content"]):
            holders += (block, *_listed(block.get("content")))
    return any("cache_control" in holder for holder in holders)


def _listed(content: object) -> list[Json]:
    return content if isinstance(content, list) else []
