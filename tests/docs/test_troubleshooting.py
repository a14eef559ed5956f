"""The messages that docs/troubleshooting.md quotes: each is what the proxy sends or prints."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import pytest
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_keys import store as keys

from tornadoproxy import ConfigurationError, Database
from tornadoproxy.testing import TEST_TOKEN, json_response, silent_response

if TYPE_CHECKING:
    from tornadoproxy.testing import Ask, ScriptedUpstream, StartProxy

PAGE = (Path(__file__).parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = dict(re.findall(r"^\| `([^`]+)` \| (?:(\d{3})\b)?", PAGE, re.MULTILINE))
MESSAGE = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "Hi"}],
}


class Case(NamedTuple):
    """A situation.

    :ivar settings: the proxy's, beside the test's own.
    :ivar token: what the client presents.
    """

    settings: dict[str, Any]
    token: str | None = TEST_TOKEN
    path: str = "/v1/messages"


Situation: TypeAlias = "Callable[[Path, ScriptedUpstream], Case]"


def key_case(path: Path, *, revoked: bool = False, **limits: Any) -> Case:
    now = int(time.time())
    with Database(path, keys.SCHEMA, name="keys") as database, database.transaction() as connection:
        key = keys.create(connection, "ada", (), keys.Limits(**limits), None, now)
        if revoked:
            keys.revoke(connection, "ada", now)
    return Case({"KEYS_DB": path}, key)


def spent(path: Path) -> Case:
    with (
        Database(path, budgets.SCHEMA, name="budgets") as database,
        database.transaction() as connection,
    ):
        scope = Scope("organization")
        budgets.set_cap(connection, scope, "monthly", 0, actor="test", now=time.time())
    return Case({"BUDGETS_DB": path})


def upstream_refuses(upstream: ScriptedUpstream) -> Case:
    upstream.script(json_response({}, 401))
    return Case({})


def upstream_is_silent(upstream: ScriptedUpstream) -> Case:
    upstream.script(silent_response())
    return Case({"UPSTREAM_FIRST_BYTE_TIMEOUT": 0.05})


SITUATIONS: dict[str, Situation] = {
    "No credential was sent": lambda _path, _upstream: Case({}, token=None),
    "The credential sent is not known here": lambda _path, _upstream: Case({}, token="wrong"),
    "This key was revoked": lambda path, _upstream: key_case(path, revoked=True),
    "This key is for the model": lambda path, _upstream: key_case(path, models=("claude-haiku-*",)),
    "has reached its limit of": lambda path, _upstream: key_case(path, requests_per_minute=1),
    "spend limit reached": lambda path, _upstream: spent(path),
    "There is nothing at": lambda _path, _upstream: Case({}, path="/v1/v1/messages"),
    "is larger than": lambda _path, _upstream: Case({"MAX_BODY_SIZE": 10}),
    "refused this proxy's own credential": lambda _path, upstream: upstream_refuses(upstream),
    "The upstream cannot be reached": lambda _path, _upstream: Case(
        {"UPSTREAM_BASE_URL": "http://127.0.0.1:9"}
    ),
    "did not begin": lambda _path, upstream: upstream_is_silent(upstream),
}


@pytest.mark.parametrize("quote", SITUATIONS)
async def test_quoted_error_is_what_the_proxy_sends(
    quote: str, start_proxy: StartProxy, ask: Ask, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    case = SITUATIONS[quote](tmp_path / "a.db", upstream)
    await start_proxy(**case.settings)
    response = await ask(case.path, MESSAGE, token=case.token)
    if response.status == 200:  # the second one is over the limit
        response = await ask(case.path, MESSAGE, token=case.token)

    assert quote in json.loads(response.body)["error"]["message"]
    assert str(response.status) == QUOTES[quote]


@pytest.mark.parametrize(
    ("variables", "quote"),
    [
        ({"UPSTREAM_BASE_URL": None, "UPSTREAM_API_KEY": None}, "needs a key"),
        ({"HOST": "0.0.0.0", "AUTH_TOKEN": None}, "no AUTH_TOKEN is set"),
    ],
)
async def test_quoted_start_up_mistake_is_what_is_printed(
    start_proxy: StartProxy, variables: dict[str, Any], quote: str
) -> None:
    assert quote in QUOTES
    with pytest.raises(ConfigurationError, match=quote):
        await start_proxy(**variables)
