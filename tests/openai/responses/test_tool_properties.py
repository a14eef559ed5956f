"""Properties of tools: what the types allow is accepted upstream, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import strategies as st
from openai.types.responses import ToolParam
from openai.types.responses.response_create_params import ToolChoice
from properties import holds_of
from tool_requests import Json, Offered, offered
from typed_values import values_of
from typing_extensions import get_type_hints

from tornadoproxy.errors import InvalidRequest
from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.responses.calls import call_of_item, item_of_call
from tornadoproxy.openai.responses.tools import TOOLS
from tornadoproxy.openai.responses.translation import ToolKind
from tornadoproxy.openai.treatment import Treatment

REFUSED = {name for name, (treatment, _) in TOOLS.items() if treatment is Treatment.REFUSED}

# the tools of requests that clients have sent, their texts shortened
SENT: dict[str, Json] = json.loads((Path(__file__).parent / "client_tools.json").read_text())

NAMES = {
    "agents: apply patch": "apply_patch",
    "agents: local shell": "local_shell",
    "AI SDK: tool search": "",
    "AI SDK: web search preview": "web_search",
    "Codex: gpt-5.5": "exec_command write_stdin request_user_input apply_patch view_image get_goal"
    " create_goal update_goal tool_search web_search",
    "Codex: gpt-5.5, later": "exec_command write_stdin request_user_input apply_patch view_image"
    " get_goal create_goal update_goal tool_search web_search multi_agent_v1__spawn_agent"
    " multi_agent_v1__close_agent multi_agent_v1__resume_agent",
    "Codex: gpt-6.2": "functions__exec functions__wait functions__request_user_input"
    " functions__request_user_input_async functions__send_message_to_user_async clock__sleep"
    " collaboration__followup_task collaboration__interrupt_agent collaboration__list_agents"
    " collaboration__send_message collaboration__spawn_agent collaboration__wait_agent",
}

POOL = ("a", "b", "a__b", "web_search", "apply_patch", "x" * 129, "ä.b")
ABLE = (
    Capabilities(),
    Capabilities(structured_outputs=False),
    Capabilities(forced_tools=False),
)


@st.composite
def tool_lists(draw: st.DrawFn) -> list[Json]:
    """Return tools as OpenAI's types allow them, most of them with names that meet again."""
    served = [each for each in get_args(ToolParam) if kind_of(each) not in REFUSED]
    drawn = draw(st.lists(st.one_of([values_of(each) for each in served]), max_size=5))
    for tool in drawn:
        for each in (tool, *tool.get("tools", ())):
            if "name" in each and draw(st.booleans()):
                each["name"] = draw(st.sampled_from(POOL))
    return drawn


def kind_of(tool: Any) -> str:  # Any: a typed dictionary
    kind: str = get_args(get_type_hints(tool)["type"])[0]
    return kind


def outcome(*listed: Json, **fields: Any) -> Offered | str:  # Any: JSON
    """Return what a model is offered, or the parameter that is refused."""
    try:
        return offered(*listed, **fields)
    except InvalidRequest as error:
        return str(error.param)


@pytest.mark.parametrize("client", SENT)
def test_tools_of_clients_are_accepted_upstream(client: str) -> None:
    request = dict(SENT[client])
    found = offered(*request.pop("tools", ()), **request)
    if client in NAMES:
        assert " ".join(found.names) == NAMES[client]


def test_list_of_a_turn_begins_like_that_of_the_turn_before() -> None:
    first, second = (
        offered(*SENT[client]["tools"], later=SENT[client].get("later", ())).tools
        for client in ("Codex: gpt-5.5", "Codex: gpt-5.5, later")
    )
    assert json.dumps(second[: len(first)]) == json.dumps(first)


@holds_of(
    *(tool_lists(), tool_lists(), st.none() | values_of(ToolChoice)),
    *(st.sampled_from(ABLE), st.booleans(), st.sampled_from((None, 1))),
    examples=30,
)
def test_tools_are_accepted_upstream_or_refused_by_name(
    listed: list[Json],
    later: list[Json],
    choice: object,
    able: Capabilities,
    parallel: bool,
    limit: int | None,
) -> None:
    rest: Json = {"parallel_tool_calls": parallel, "max_tool_calls": limit, "web_search": parallel}
    found = outcome(*listed, later=later, tool_choice=choice, able=able, **rest)
    if isinstance(found, str):
        assert found.startswith(("tools[", "input[0].tools[", "tool_choice"))
        return
    assert len(set(found.origins.values())) == len(found.origins)
    assert set(found.names) <= found.origins.keys()
    for name, origin in found.origins.items():
        if origin.kind is not ToolKind.WEB_SEARCH:
            item = item_of_call(origin, "x_1", "toolu_1", {}, "completed")
            assert call_of_item(item, "input[0]", found.origins)[0] == name


@holds_of(values_of(ToolParam), st.none() | values_of(ToolChoice))
def test_any_tool_is_accepted_upstream_or_refused_by_name(tool: Json, choice: object) -> None:
    found = outcome(tool, tool_choice=choice)
    if isinstance(found, str):
        assert found.startswith(("tools[0]", "tool_choice"))
    else:
        assert tool["type"] not in REFUSED
