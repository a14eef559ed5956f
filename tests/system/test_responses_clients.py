# ruff: noqa: E402  # the frameworks are imported where they are installed
"""Frameworks that use OpenAI's Responses API, against the real proxy.

They are tested where the extra ``clients`` is installed, as ``.ci/run`` does. What they must not
notice is that a Claude model responds; what the upstream must get back is each
thought, in its place and unchanged.
"""

from __future__ import annotations

import pytest

for framework in ("agents", "langchain_openai", "pydantic_ai"):
    pytest.importorskip(framework, reason="needs the frameworks of the extra clients")

from agents import (
    Agent,
    ModelSettings,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticModel
from pydantic_ai.models.openai import OpenAIResponsesModelSettings
from pydantic_ai.providers.openai import OpenAIProvider
from scene import Scene
from turns import THOUGHT, asked, blocks, call, script, text, turn

from tornadoproxy.testing import TEST_TOKEN, Proxy

pytestmark = [
    pytest.mark.long,
    pytest.mark.usefixtures("proxy"),
    pytest.mark.gen_test(timeout=30),
]

MODEL = "claude-sonnet-5-5"


class Sum(BaseModel):
    total: int


def add_numbers(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


ADD = call("add_numbers", a=2, b=3)
IN_TWO_TURNS = (turn(THOUGHT, text("Let me see."), ADD), turn(text("It is 5.")))


def check_two_turns(scene: Scene) -> None:
    """The second request has the first turn as it was, and the result of its call."""
    first, second = asked(scene.upstream)
    assert first["tools"][0]["name"] == "add_numbers"
    assert blocks(second, "assistant") == [THOUGHT, text("Let me see."), ADD]
    (result,) = [each for each in blocks(second, "user") if each["type"] == "tool_result"]
    assert (result["tool_use_id"], result["content"]) == (ADD["id"], "5")


# -- openai-agents


@pytest.fixture
def agent(openai_client: AsyncOpenAI) -> Agent:
    set_tracing_disabled(True)
    model = OpenAIResponsesModel(MODEL, openai_client)
    return Agent("Adder", instructions="Be brief.", model=model, tools=[function_tool(add_numbers)])


async def test_agents_run_a_tool(agent: Agent, scene: Scene) -> None:
    await script(scene, *IN_TWO_TURNS)
    ran = await Runner.run(agent, "What is 2 + 3?")
    assert ran.final_output == "It is 5."
    assert ran.context_wrapper.usage.output_tokens > 0
    check_two_turns(scene)


async def test_agents_stream(agent: Agent, scene: Scene) -> None:
    await script(scene, *IN_TWO_TURNS)
    ran = Runner.run_streamed(agent, "What is 2 + 3?")
    deltas = [
        event.data.delta
        async for event in ran.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    assert "".join(deltas) == "Let me see.It is 5."
    assert ran.final_output == "It is 5."
    check_two_turns(scene)


async def test_agents_hand_off(agent: Agent, scene: Scene) -> None:
    first = Agent("Triage", model=agent.model, handoffs=[agent])
    await script(scene, turn(THOUGHT, call("transfer_to_adder")), turn(text("Done.")))
    ran = await Runner.run(first, "Add for me")
    assert (ran.final_output, ran.last_agent.name) == ("Done.", "Adder")
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [THOUGHT, call("transfer_to_adder")]


async def test_agents_structured_output(agent: Agent, scene: Scene) -> None:
    await script(scene, turn(text('{"total":5}')))
    ran = await Runner.run(agent.clone(output_type=Sum), "What is 2 + 3?")
    assert ran.final_output == Sum(total=5)
    (only,) = asked(scene.upstream)
    assert only["output_config"]["format"]["schema"]["required"] == ["total"]


@pytest.mark.parametrize("chained", [False, True])
async def test_agents_remember(agent: Agent, scene: Scene, *, chained: bool) -> None:
    await script(scene, turn(THOUGHT, text("Hello Ada.")), turn(text("You are Ada.")))
    session = None if chained else SQLiteSession("one")
    first = await Runner.run(agent, "I am Ada", session=session)
    previous = first.last_response_id if chained else None
    await Runner.run(agent, "Who am I?", session=session, previous_response_id=previous)
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [THOUGHT, text("Hello Ada.")]
    assert blocks(second, "user") == [text("I am Ada"), text("Who am I?")]


async def test_agents_settings_are_accepted(agent: Agent, scene: Scene) -> None:
    settings = ModelSettings(
        temperature=0.5,
        tool_choice="required",
        parallel_tool_calls=False,
        truncation="auto",
        max_tokens=100,
        metadata={"team": "blue"},
        verbosity="low",
        top_logprobs=0,
        include_usage=True,
        store=True,
    )
    await script(scene, *IN_TWO_TURNS)
    ran = await Runner.run(agent.clone(model_settings=settings), "What is 2 + 3?")
    assert ran.final_output == "It is 5."
    first, _ = asked(scene.upstream)
    assert first["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert first["max_tokens"] == 100


# -- LangChain


@pytest.fixture
def chat(proxy: Proxy) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{proxy.url}/openai/v1",
        api_key=SecretStr(TEST_TOKEN),
        use_responses_api=True,
        max_retries=0,
    )


@pytest.mark.parametrize("streams", [False, True])
async def test_langchain_runs_a_tool(chat: ChatOpenAI, scene: Scene, *, streams: bool) -> None:
    await script(scene, *IN_TWO_TURNS)
    adder = tool(add_numbers)
    with_tools = chat.bind_tools([adder])
    messages: list[BaseMessage] = [HumanMessage("What is 2 + 3?")]
    if streams:
        chunks = [chunk async for chunk in with_tools.astream(messages)]
        first = sum(chunks[1:], chunks[0])
    else:
        first = await with_tools.ainvoke(messages)
    (wanted,) = first.tool_calls
    assert wanted["args"] == {"a": 2, "b": 3}
    messages += [first, await adder.ainvoke(wanted)]
    second = await with_tools.ainvoke(messages)
    assert second.text == "It is 5."
    assert second.usage_metadata
    assert second.usage_metadata["total_tokens"] > 0
    check_two_turns(scene)


async def test_langchain_structured_output(chat: ChatOpenAI, scene: Scene) -> None:
    await script(scene, turn(text('{"total":5}')))
    assert await chat.with_structured_output(Sum).ainvoke("2 + 3") == Sum(total=5)


async def test_langchain_goes_on_by_response_id(chat: ChatOpenAI, scene: Scene) -> None:
    await script(scene, turn(THOUGHT, text("Hello Ada.")), turn(text("You are Ada.")))
    by_id = chat.model_copy(update={"use_previous_response_id": True})
    first = await by_id.ainvoke([("user", "I am Ada")])
    await by_id.ainvoke([("user", "I am Ada"), first, ("user", "Who am I?")])
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [THOUGHT, text("Hello Ada.")]
    assert blocks(second, "user") == [text("I am Ada"), text("Who am I?")]


# -- pydantic-ai


@pytest.fixture
def pydantic_model(openai_client: AsyncOpenAI) -> PydanticModel:
    return PydanticModel(MODEL, provider=OpenAIProvider(openai_client=openai_client))


async def test_pydantic_ai_runs_a_tool(pydantic_model: PydanticModel, scene: Scene) -> None:
    await script(scene, turn(text("Let me see."), ADD), turn(text("It is 5.")))
    ran = await PydanticAgent(pydantic_model, tools=[add_numbers]).run("What is 2 + 3?")
    assert ran.output == "It is 5."
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [text("Let me see."), ADD]


async def test_pydantic_ai_structured_output(pydantic_model: PydanticModel, scene: Scene) -> None:
    await script(scene, turn(call("final_result", total=5)))
    ran = await PydanticAgent(pydantic_model, output_type=Sum).run("What is 2 + 3?")
    assert ran.output == Sum(total=5)
    (only,) = asked(scene.upstream)
    assert only["tool_choice"]["type"] == "any"


async def test_pydantic_ai_streams_and_goes_on_by_response_id(
    pydantic_model: PydanticModel, scene: Scene
) -> None:
    await script(scene, turn(THOUGHT, text("Hello Ada.")), turn(text("You are Ada.")))
    settings = OpenAIResponsesModelSettings(openai_previous_response_id="auto")
    talker = PydanticAgent(pydantic_model, model_settings=settings)
    async with talker.run_stream("I am Ada") as streamed:
        assert await streamed.get_output() == "Hello Ada."
    ran = await talker.run("Who am I?", message_history=streamed.all_messages())
    assert ran.output == "You are Ada."
    _, second = asked(scene.upstream)
    assert blocks(second, "assistant") == [THOUGHT, text("Hello Ada.")]
