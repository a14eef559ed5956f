"""Tools of Responses requests and their translation, for the tests of this folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from anthropic.types import ToolUnionParam
from anthropic.types.tool_choice_param import ToolChoiceParam
from pydantic import TypeAdapter

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.responses import tools
from tornadoproxy.openai.responses.translation import Origin
from tornadoproxy.openai.schema import Grammar

Json = dict[str, Any]  # Any: what a test writes and reads as JSON

SCHEMA: Json = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Json = {"type": "function", "name": "weather", "parameters": SCHEMA}
CLOCK: Json = {"type": "function", "name": "clock", "parameters": None, "strict": None}
RUN: Json = {"type": "custom", "name": "run", "description": "Runs code."}

UPSTREAM: TypeAdapter[Any] = TypeAdapter(list[ToolUnionParam])
UPSTREAM_CHOICE: TypeAdapter[Any] = TypeAdapter(ToolChoiceParam)


class Offered(NamedTuple):
    """What a model is offered for a client's tools."""

    tools: list[Json]
    choice: Json | None
    instruction: str | None
    origins: dict[str, Origin]
    ignored: list[str]

    @property
    def names(self) -> list[str]:
        return [tool["name"] for tool in self.tools]


def offered(
    *listed: Json,
    later: Iterable[Json] = (),
    able: Capabilities | None = None,
    web_search: bool = True,
    **fields: Any,  # Any: JSON
) -> Offered:
    """Translate tools, and assert that the upstream accepts the result.

    :param later: tools that input items list.
    """
    document = {"tools": list(listed), **fields}
    before = copy.deepcopy(document)
    ignored: list[str] = []
    additional = [(tool, f"input[0].tools[{index}]") for index, tool in enumerate(later)]
    found = tools.translate(
        *(document, additional, able or Capabilities(), Grammar(), ignored),
        web_search=web_search,
    )
    assert document == before, "the request stays unchanged"
    offer = found.offer
    accept(offer.tools, offer.choice)
    return Offered(offer.tools, offer.choice, offer.instruction, found.origins, ignored)


def accept(listed: list[Json], choice: Json | None) -> None:
    """Assert that the upstream accepts tools: its types, and the rules beyond types."""
    UPSTREAM.validate_python(copy.deepcopy(listed))
    names = [tool["name"] for tool in listed]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-zA-Z0-9_-]{1,128}", name) for name in names)
    assert sum(tool.get("strict", False) for tool in listed) <= 20
    if choice is not None:
        UPSTREAM_CHOICE.validate_python(choice)
        assert listed
        assert choice.get("name", names[0]) in names


def refused(*listed: Json, **fields: Any) -> InvalidRequest:  # Any: JSON
    with pytest.raises(InvalidRequest) as caught:
        offered(*listed, **fields)
    assert caught.value.status == 400
    return caught.value


def namespace(name: str, *listed: Json, description: str = "") -> Json:
    described = {"description": description} if description else {}
    return {"type": "namespace", "name": name, "tools": list(listed), **described}
