"""The choice among the tools of a Responses request."""

from __future__ import annotations

import pytest
from tool_requests import CLOCK, RUN, WEATHER, Json, namespace, offered, refused

from tornadoproxy.openai.models import Capabilities
from tornadoproxy.openai.responses.tool_choice import CHOICES
from tornadoproxy.openai.treatment import Treatment

ALWAYS_THINKS = Capabilities(forced_tools=False)
SEARCH: Json = {"type": "web_search_2025_08_26"}
BUILT_IN: list[Json] = [{"type": name} for name in ("shell", "local_shell", "apply_patch")]
CRM = namespace("crm", CLOCK, {**WEATHER, "name": "orders"}, {**RUN, "name": "sql"})


@pytest.mark.parametrize(
    ("wanted", "choice"),
    [
        (None, None),
        ("none", {"type": "none"}),
        ("auto", {"type": "auto"}),
        ("required", {"type": "any"}),
        ({"type": "function", "name": "clock"}, {"type": "tool", "name": "clock"}),
        ({"type": "function", "name": "orders"}, {"type": "tool", "name": "crm__orders"}),
        (
            {"type": "function", "name": "clock", "namespace": "crm"},
            {"type": "tool", "name": "crm__clock"},
        ),
        ({"type": "custom", "name": "run"}, {"type": "tool", "name": "run"}),
        ({"type": "custom", "name": "sql"}, {"type": "tool", "name": "crm__sql"}),
        ({"type": "web_search_preview"}, {"type": "tool", "name": "web_search"}),
        *(({"type": each["type"]}, {"type": "tool", "name": each["type"]}) for each in BUILT_IN),
    ],
)
def test_choice_is_translated_with_or_without_parallel_calls(
    wanted: object, choice: Json | None
) -> None:
    listed = (CRM, CLOCK, RUN, SEARCH, *BUILT_IN)
    single = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    single = {"type": "none"} if wanted == "none" else single
    for parallel, expected in ((None, choice), (True, choice), (False, single)):
        found = offered(*listed, tool_choice=wanted, parallel_tool_calls=parallel)
        assert found.choice == expected
        assert len(found.tools) == 9


@pytest.mark.parametrize(("mode", "kind"), [("auto", "auto"), ("required", "any")])
def test_only_allowed_tools_go_upstream(mode: str, kind: str) -> None:
    allowed = [
        {"type": "function", "name": "clock"},
        {"type": "custom", "name": "sql"},
        {"type": "web_search"},
    ]
    choice = {"type": "allowed_tools", "mode": mode, "tools": allowed}
    found = offered(CRM, SEARCH, RUN, CLOCK, tool_choice=choice)
    assert found.names == ["crm__sql", "web_search", "clock"]
    assert found.choice == {"type": kind}


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"type": "function", "name": "orders"}, "Call the tool crm__orders now."),
        ("required", "Call at least one of the tools now."),
        ("none", None),
    ],
)
def test_model_that_cannot_be_forced_is_asked(wanted: object, sentence: str | None) -> None:
    found = offered(CRM, tool_choice=wanted, parallel_tool_calls=False, able=ALWAYS_THINKS)
    auto = {"type": "auto", "disable_parallel_tool_use": True}
    assert found.instruction == sentence
    assert found.choice == (auto if sentence else {"type": "none"})
    assert found.ignored == (["tool_choice"] if sentence else [])


@pytest.mark.parametrize("wanted", [None, "none", "auto"])
def test_without_tools_there_is_no_choice(wanted: object) -> None:
    found = offered(tool_choice=wanted, parallel_tool_calls=False)
    assert (found.tools, found.choice, found.ignored) == ([], None, [])


def test_choice_of_a_tool_that_is_left_out_has_no_effect() -> None:
    only = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}
    for wanted, choice, named in (
        ({"type": "web_search"}, None, ["tool_choice"]),
        (only, {"type": "none"}, []),
    ):
        found = offered(CLOCK, SEARCH, web_search=False, tool_choice=wanted)
        assert (found.names, found.choice) == (["clock"], choice)
        assert found.ignored == ["tools.web_search", *named]
    found = offered(SEARCH, web_search=False, tool_choice="required")
    assert (found.tools, found.choice) == ([], None)
    assert found.ignored == ["tools.web_search", "tool_choice"]


def test_choice_of_a_tool_that_does_not_exist_here_is_refused() -> None:
    for kind, (treatment, _) in CHOICES.items():
        if treatment is Treatment.REFUSED:
            error = refused(CLOCK, tool_choice={"type": kind})
            assert error.param == "tool_choice.type"
            assert kind in str(error)


@pytest.mark.parametrize(
    ("wanted", "param"),
    [
        (7, "tool_choice"),
        ("sometimes", "tool_choice"),
        ({}, "tool_choice.type"),
        ({"type": "required"}, "tool_choice.type"),
        ({"type": "shell"}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.name"),
        ({"type": "function", "name": "run"}, "tool_choice.name"),
        ({"type": "function", "name": "clock", "namespace": "x"}, "tool_choice.name"),
        ({"type": "allowed_tools", "mode": "auto"}, "tool_choice.tools"),
        ({"type": "allowed_tools", "mode": "auto", "tools": []}, "tool_choice.tools"),
        (
            {"type": "allowed_tools", "mode": "none", "tools": [{"type": "custom", "name": "run"}]},
            "tool_choice.mode",
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]},
            "tool_choice.tools[0].type",
        ),
    ],
)
def test_invalid_choice_is_refused(wanted: object, param: str) -> None:
    assert refused(CLOCK, RUN, tool_choice=wanted).param == param


def test_choice_of_an_unknown_type_is_told_those_that_are_served() -> None:
    _, _, listed = str(refused(CLOCK, tool_choice={"type": "x"})).partition("must be one of ")
    served = [
        kind
        for kind, (treatment, _) in CHOICES.items()
        if treatment is Treatment.TRANSLATED
        and kind not in ("none", "auto", "required", "allowed_tools")
    ]
    assert listed == ", ".join(served) + "."


def test_choice_that_forces_a_call_needs_tools() -> None:
    assert refused(tool_choice="required").param == "tool_choice"
    assert refused(CLOCK, parallel_tool_calls="no").param == "parallel_tool_calls"
