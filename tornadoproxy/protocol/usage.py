"""The tokens and tool calls that a response reports."""

from __future__ import annotations

from msgspec import Struct


class Usage(Struct, frozen=True):
    """The tokens and tool calls that a response reports, as far as it was read.

    The counts are those of one model: of a record's usage, the model that answered. `others` holds
    what a response spent besides. ``None`` means not reported.

    :param input_tokens: those neither read from the cache nor written to it.
    :param output_tokens: of the response; if `partial`, those that were reported or, if that is
        more, an estimate from the content that was seen.
    :param cache_read_input_tokens: read from the prompt cache.
    :param cache_creation_input_tokens: written to the prompt cache, for whatever time.
    :param cache_creation_1h_input_tokens: those of them that are kept for an hour.
    :param web_search_requests: searches that the API's own tool did.
    :param web_fetch_requests: pages that the API's own tool fetched.
    :param partial: the response was cut, or could not be read, so that there may have been more.
    :param others: each call of an advisor, each compaction, and each attempt that declined before a
        fallback and had output by then.
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
        """The usage of each model: this one's counts, then those of `others`."""
        return (self, *(other.usage for other in self.others))


class ModelUsage(Struct, frozen=True):
    """What one call to a model used within a response that took several.

    :param model: its name; ``None`` if it was not reported.
    :param usage: its own counts.
    :param cost: what they cost, in billionths of a US dollar; ``None`` if that is not known.
    """

    model: str | None
    usage: Usage
    cost: int | None = None


NOTHING_REPORTED = Usage()
"""The usage of an exchange that no answer has been told of."""

BYTES_PER_TOKEN = 4
"""How many bytes count as one token in an estimate."""
