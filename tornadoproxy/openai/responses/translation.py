"""A translated request, with what the translation of its response needs."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

from tornadoproxy.openai.messages_request import TranslatedRequest

if TYPE_CHECKING:
    from tornadoproxy.openai.reading import Json


class ToolKind(Enum):
    """The kind of a client's tool, which decides the form of its calls."""

    FUNCTION = auto()
    CUSTOM = auto()
    TOOL_SEARCH = auto()
    SHELL = auto()
    LOCAL_SHELL = auto()
    APPLY_PATCH = auto()
    WEB_SEARCH = auto()


class Origin(NamedTuple):
    """The client's tool that a tool of the upstream's request stands for.

    :param namespace: the namespace it was listed in, if any.
    """

    kind: ToolKind
    name: str
    namespace: str | None = None


class Translation(TranslatedRequest, frozen=True, kw_only=True):
    """See `TranslatedRequest`.

    :param origins: the client's tool for each name of an upstream's tool; a name that is not here
        is that of a function.
    :param echo: the fields of the response object that repeat the request or are constant; all but
        ``id``, ``created_at``, ``completed_at``, ``model``, ``status``, ``output``, ``usage``,
        ``error`` and ``incomplete_details``.
    :param kept: whether the response is to be stored.
    :param previous: the id of the response that this one continues.
    :param input: the request's own input items, references resolved; empty unless the response is
        `kept` or `compacts`.
    :param for_codex: whether a refusal that comes before any other content is a failed response,
        the only form that Codex shows.
    :param compacts: whether the response is one compaction item.
    """

    origins: Mapping[str, Origin]
    echo: Json
    kept: bool
    previous: str | None
    input: tuple[Json, ...]
    for_codex: bool
    compacts: bool
