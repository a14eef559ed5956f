"""The tokens and tool calls that a response reports."""

from __future__ import annotations

from msgspec import Struct


class Usage(Struct, frozen=True):
    """The tokens and tool calls that a response reports, as far as it was read.

    The counts are those of the model that responded; `others` holds the response's calls to other
    models. ``None`` means not reported.

    :param input_tokens: input tokens neither read from the cache nor written to it.
    :param output_tokens: output tokens; if `partial`, the reported number or, if that is higher, an
        estimate from the content.
    :param cache_read_input_tokens: input tokens read from the prompt cache.
    :param cache_creation_input_tokens: input tokens written to the prompt cache, for any lifetime.
    :param cache_creation_1h_input_tokens: those of them that are kept for an hour.
    :param web_search_requests: searches by the API's own tool.
    :param web_fetch_requests: pages fetched by the API's own tool.
    :param partial: whether the response was cut or unreadable, so that there may have been more.
    :param others: each call of an advisor, each compaction, and each attempt that declined, before
        a fallback, after it had output.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation_1h_input_tokens: int | None = None
    web_search_requests: int | None = None
    web_fetch_requests: int | None = None
    partial: bool = False
    others: tuple[ModelUsage, ...] = ()

    def parts(self) -> tuple[Usage, ...]:
        """Return the usage of each call: this one's counts, then those of `others`."""
        if not self.others:
            return (self,)
        return (self, *(other.usage for other in self.others))


class ModelUsage(Struct, frozen=True):
    """The usage of one call to a model within a response that took several.

    :param model: the model's name; ``None`` if it was not reported.
    :param usage: the counts of this call.
    :param cost: the cost in billionths of a US dollar; ``None`` if unknown.
    """

    model: str | None
    usage: Usage
    cost: int | None = None


NOTHING_REPORTED = Usage()
"""The usage of an exchange whose response has reported none."""

NOTHING_USED = Usage(0, 0)
"""The usage of a response for which no model ran, or which is not charged."""

UNKNOWN_MODEL = "(unknown)"
"""Stands in `ModelRequest.models` for a model that cannot be read from the request.

No list of allowed models contains it, and only a pattern that allows every model matches it.
"""

BYTES_PER_TOKEN = 4
"""How many bytes count as one token in an estimate."""
