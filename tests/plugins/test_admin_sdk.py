"""Each method that the SDK has for an organization is served or refused, as documented."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
from admin_api import ORGANIZATION, AdminApi
from anthropic import Anthropic, APIStatusError, AsyncAnthropic
from anthropic._compat import cached_property
from budget_team import ADMIN
from scene import Scene

from tornadoproxy import DatabaseLocation
from tornadoproxy.testing import clean_environment

DOCUMENT = Path(__file__).parents[2] / "docs" / "admin.md"
# the other two send the same requests as these
CLIENTS = (("beta.organization", "sync"), ("organization", "async"))


class Sent(NamedTuple):
    """A request of the SDK, and its response."""

    method: str
    path: str
    status: int
    message: str


def methods(resource: Any, *path: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield each method of a resource of the SDK and of those below it, with its name."""
    for name in sorted(vars(type(resource))):
        if name.startswith(("_", "with_")):
            continue
        kind = inspect.getattr_static(type(resource), name)
        if isinstance(kind, cached_property):
            yield from methods(getattr(resource, name), *path, name)
        elif inspect.isfunction(kind):
            yield ".".join([*path, name]), getattr(resource, name)


def arguments(method: Callable[..., Any]) -> dict[str, str | bytes]:
    return {
        name: b"" if name == "archive" else "ID"
        for name, each in inspect.signature(method).parameters.items()
        if each.default is each.empty and each.kind is not each.VAR_KEYWORD
    }


def organization(client: Any, root: str) -> Any:
    for name in root.split("."):
        client = getattr(client, name)
    return client


def served() -> dict[str, set[str]]:
    """Return the documented resources with their methods."""
    found = {}
    table = DOCUMENT.read_text().partition("| Resource | Methods |")[2].partition("\n\n")[0]
    for names, allowed in re.findall(r"^\| (`.+?) \| ([A-Z, ]+?) \|", table, re.MULTILINE):
        last = ""
        for name in re.findall("`(.+?)`", names):
            # the second of two is written as the end of the first
            whole = name.replace("…", re.sub("/(ID|approve)$", "", last))
            found[whole] = set(allowed.split(", "))
            last = whole
    return found


def refused() -> set[str]:
    """Return the beginnings of the paths that are documented as not served."""
    table = DOCUMENT.read_text().partition("| Not served |")[2].partition("\n\n")[0]
    return {
        name for line in table.splitlines() for name in re.findall("`(.+?)`", line.split(" | ")[0])
    }


@pytest.mark.parametrize(("root", "kind"), CLIENTS)
async def test_each_method_is_served_or_refused_as_documented(
    root: str,
    kind: str,
    scene: Scene,
    where: DatabaseLocation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean_environment(monkeypatch)
    api = AdminApi(scene, where, KEYS_DB=where, BUDGETS_DB=where, LEDGER_DB=where)
    url = (await api.start()).url
    found: dict[str, Sent] = {}

    def sent(name: str, error: APIStatusError | None, response: httpx2.Response) -> None:
        path = response.url.path.removeprefix(f"{ORGANIZATION}/")
        message = "" if error is None else error.message
        found[name] = Sent(response.request.method, path, response.status_code, message)

    given: dict[str, Any] = {"base_url": url, "api_key": ADMIN, "max_retries": 0}
    responses = list[httpx2.Response]()

    def all_of_sync() -> None:
        http = httpx2.Client(event_hooks={"response": [responses.append]})
        with Anthropic(**given, http_client=http) as client:
            for name, method in methods(organization(client, root)):
                error = None
                try:
                    method(**arguments(method))
                except APIStatusError as raised:
                    error = raised
                sent(name, error, responses.pop())

    async def all_of_async() -> None:
        async def received(response: httpx2.Response) -> None:
            responses.append(response)

        http = httpx2.AsyncClient(event_hooks={"response": [received]})
        async with AsyncAnthropic(**given, http_client=http) as client:
            for name, method in methods(organization(client, root)):
                error = None
                try:
                    await method(**arguments(method))
                except APIStatusError as raised:
                    error = raised
                sent(name, error, responses.pop())

    await (asyncio.to_thread(all_of_sync) if kind == "sync" else all_of_async())
    known, not_served = served(), refused()
    assert len(found) > 60
    beginnings = set()
    for name, each in found.items():
        if each.path not in known:
            assert each.status == 404, (name, each)
            assert f"does not serve {ORGANIZATION}/{each.path}" in each.message
            beginning = next((b for b in not_served if f"{each.path}/".startswith(f"{b}/")), None)
            if beginning is None:  # more of a resource that is served
                assert each.path.partition("/")[0] in {"users", "rbac_groups"}, (name, each)
            beginnings.add(beginning)
        elif each.method not in known[each.path]:
            assert each.status == 405, (name, each)
            assert "supports only" in each.message
        else:
            assert each.status in {200, 400, 404}, (name, each)
            assert "does not serve" not in each.message, (name, each)
    if root == "beta.organization":
        assert beginnings - {None} == not_served
