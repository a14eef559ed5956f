"""The lists of models show what a client may use, and authorize decides the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import anthropic
import pytest
from hypothesis import strategies as st
from properties import holds_of
from scene import Scene
from served import MESSAGE_FIELDS, anthropic_error, openai_error
from tornadoproxy_keys import changes, store

from tornadoproxy import AllowedModels, Database, Denied, Identity, ModelRequest, hookimpl
from tornadoproxy.testing import TEST_TOKEN, error_response, json_response

ALL = ["claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5", "claude-sonnet-4-5-20250929"]
PATH, OPENAI = "/v1/models", "/openai/v1/models"


class Rule:
    """Allows these models, as `decide` returns them."""

    def __init__(self, decide: Callable[[], object], *, awaited: bool = False) -> None:
        self._decide, self._awaited = decide, awaited

    @hookimpl
    def allowed_models(self, identity: Identity) -> Any:
        assert identity.principal == "token"

        async def later() -> object:
            await asyncio.sleep(0)
            return self._decide()

        return later() if self._awaited else self._decide()


def only(*patterns: str, awaited: bool = False) -> Rule:
    return Rule(lambda: AllowedModels(patterns, "You may use"), awaited=awaited)


async def listed(scene: Scene, path: str = PATH) -> dict[str, Any]:
    response = await scene.ask(path)
    assert response.status == 200, response.body
    document: dict[str, Any] = json.loads(response.body)
    return document


def ids(document: dict[str, Any]) -> list[str]:
    return [model["id"] for model in document["data"]]


async def test_upstream_lists_these_models(scene: Scene) -> None:
    await scene.start()
    assert ids(await listed(scene)) == ALL


@pytest.mark.parametrize("path", [f"{PATH}?limit=2", PATH, f"{PATH}/claude-opus-5-5"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_list_without_a_rule_is_relayed_byte_for_byte(
    scene: Scene, path: str, method: str
) -> None:
    sent = json_response({"data": [], "odd": "ü\n"}, headers={"x-odd": "1"})
    responses = []
    for plugins in ([], [Rule(lambda: None)], [Rule(lambda: None, awaited=True)]):
        await scene.start(plugins=plugins)
        scene.upstream.script(sent)
        response = await scene.ask(path, method=method)
        responses.append((response.status, response.body, response.header("x-odd")))
        assert scene.upstream.requests[-1].target == path
    assert len(scene.upstream.requests) == 3
    assert responses[1:] == responses[:1] * 2


@pytest.mark.parametrize("awaited", [False, True])
async def test_lists_show_what_all_rules_allow(scene: Scene, *, awaited: bool) -> None:
    rules = {
        "a": only("claude-*-5-5", awaited=awaited),
        "b": only("*sonnet*", "*opus*"),
        "c": Rule(lambda: None),
    }
    await scene.start(plugins=rules, CHAT_MODELS="small=claude-haiku-5-5 best=claude-opus-5-5")
    expected = ["claude-opus-5-5", "claude-sonnet-5-5"]
    assert ids(await listed(scene)) == expected
    assert ids(await listed(scene, OPENAI)) == [*expected, "best"]
    assert (await scene.ask(PATH, method="HEAD")).status == 200


async def test_shown_models_keep_the_upstreams_fields(scene: Scene) -> None:
    await scene.start()
    before = await listed(scene)
    await scene.start(plugins=[only("*haiku*")])
    (shown,) = (await listed(scene))["data"]
    assert shown == before["data"][2]


@pytest.mark.parametrize(
    ("query", "expected", "has_more"),
    [
        ("", ["a", "c", "e"], False),
        ("?limit=2", ["a", "c"], True),
        ("?limit=3", ["a", "c", "e"], False),
        ("?limit=1&after_id=a", ["c"], True),
        ("?after_id=c", ["e"], False),
        ("?after_id=e", [], False),
        ("?limit=1&before_id=e", ["c"], True),
        ("?before_id=c&beta=true", ["a"], False),
        ("?before_id=a", [], False),
    ],
)
async def test_pages_of_the_list_are_of_what_is_shown(
    scene: Scene, query: str, expected: list[str], has_more: bool
) -> None:
    # the upstream has two pages
    first = {"data": [{"id": name} for name in "abc"], "has_more": True, "last_id": "c"}
    second = {"data": [{"id": name} for name in "def"], "has_more": False, "last_id": "f"}
    scene.upstream.script(json_response(first), json_response(second))
    await scene.start(plugins=[only("[ace]")])
    assert await listed(scene, PATH + query) == {
        "data": [{"id": name} for name in expected],
        "has_more": has_more,
        "first_id": expected[0] if expected else None,
        "last_id": expected[-1] if expected else None,
    }


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "limit=x", "after_id=b", "after_id=a&before_id=e"]
)
async def test_wrong_page_is_refused(scene: Scene, query: str) -> None:
    scene.upstream.script(json_response({"data": [{"id": name} for name in "abc"]}))
    await scene.start(plugins=[only("[ac]")])
    anthropic_error(await scene.ask(f"{PATH}?{query}"), 400, "invalid_request_error")


async def test_sdk_reads_all_pages(scene: Scene) -> None:
    proxy = await scene.start(plugins=[only("*opus*", "*sonnet*")])
    async with anthropic.AsyncAnthropic(base_url=proxy.url, api_key=TEST_TOKEN) as client:
        found = [model.id async for model in client.models.list(limit=1)]
    assert found == [name for name in ALL if "haiku" not in name]


async def test_model_that_is_not_allowed_is_not_found(scene: Scene) -> None:
    await scene.start(
        plugins=[only("*sonnet*")], CHAT_MODELS="small=claude-haiku-5-5 *=claude-opus-5-5"
    )
    for name in ("claude-haiku-5-5", quote("claude\nhaiku")):
        message = anthropic_error(await scene.ask(f"{PATH}/{name}"), 404, "not_found_error")
        assert message.startswith("model: claude")
    assert scene.upstream.requests == []
    assert (await scene.ask(f"{PATH}/claude-sonnet-5-5")).status == 200
    assert [each.target for each in scene.upstream.requests] == [f"{PATH}/claude-sonnet-5-5"]
    for name in ("claude-haiku-5-5", "small", "anything"):
        response = await scene.ask(f"{OPENAI}/{name}")
        openai_error(response, 404, code="model_not_found", param="model")
    assert (await scene.ask(f"{OPENAI}/claude-sonnet-5-5")).status == 200


async def test_list_takes_no_body(scene: Scene) -> None:
    await scene.start(plugins=[only("*sonnet*")])
    response = await scene.ask(PATH, method="GET", body=b"{}")
    anthropic_error(response, 413, "request_too_large")
    assert scene.upstream.requests == []


async def test_upstreams_error_is_passed_on(scene: Scene) -> None:
    scene.upstream.script(error_response(429, "rate_limit_error", "Slow down."))
    await scene.start(plugins=[only("*sonnet*")])
    response = await scene.ask(PATH)
    assert response.status == 429
    assert json.loads(response.body)["error"]["message"] == "Slow down."


def break_down() -> None:
    raise LookupError


@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("decide", [break_down, lambda: ["claude-*"], lambda: "claude-*"])
@pytest.mark.parametrize("path", [PATH, f"{PATH}/claude-sonnet-5-5", OPENAI])
async def test_broken_rule_shows_nothing(
    scene: Scene, path: str, decide: Callable[[], object], *, awaited: bool
) -> None:
    await scene.start(plugins=[Rule(decide, awaited=awaited)])
    assert (await scene.ask(path)).status == 503
    assert scene.upstream.requests == []


async def test_key_lists_the_models_that_it_may_use(scene: Scene, tmp_path: Any) -> None:
    path = tmp_path / "keys.db"
    tokens = {}
    with Database(path, store.SCHEMA, name="keys") as database:
        for name, patterns in (("ada", ("*haiku*", "*opus*")), ("kim", ())):
            with database.transaction() as connection:
                limits, by = store.Limits(patterns), changes.By("test")
                _, tokens[name] = changes.create(connection, name, (), limits, None, 1, by)
    await scene.start(KEYS_DB=path)
    for name, expected in (("ada", [ALL[0], ALL[2]]), ("kim", ALL)):
        response = await scene.ask(PATH, token=tokens[name])
        assert ids(json.loads(response.body)) == expected
        for model in ALL:
            decided = await scene.ask(
                "/v1/messages", {**MESSAGE_FIELDS, "model": model}, token=tokens[name]
            )
            assert decided.status == (200 if model in expected else 403)


@holds_of(
    st.lists(st.text("ab*?[]-", min_size=1), min_size=1), st.text("ab-", min_size=1), examples=50
)
def test_rule_of_the_list_is_that_of_the_decision(patterns: Sequence[str], model: str) -> None:
    rule = AllowedModels(patterns, "You may use")
    asked = ModelRequest(model, (model,), None, stream=False, size=1)
    try:
        rule.check(None, asked)  # type: ignore[arg-type]  # unused, since a model is asked for
    except Denied:
        assert not rule.allows(model)
    else:
        assert rule.allows(model)
