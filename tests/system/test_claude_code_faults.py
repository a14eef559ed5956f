"""What a person reads in the real Claude Code when something fails at the gateway.

Some of these errors are never the proxy's own: a plugin sends them in its place, so that it is
known what each of them would cost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from desk import ENTER, LONG, NEEDED, Desk, Terminal, code_of
from tornadoproxy_oidc import device_api

from tornadoproxy import (
    AuthenticationFailed,
    Denied,
    IncomingRequest,
    Page,
    PageRequest,
    PageResponse,
    ProxyError,
    hookimpl,
)
from tornadoproxy.testing import json_response

pytest_plugins = ("desk",)
pytestmark = [*NEEDED, LONG]

UNIFIED = "Anthropic-Ratelimit-Unified-"


class Faults:
    """Responds in place of the proxy.

    :param pages: the responses of each path, one after the other; the last one stays.
    :param message: the error of a request for a message.
    """

    def __init__(
        self,
        pages: dict[str, list[tuple[int, dict[str, Any]]]] | None = None,
        message: ProxyError | None = None,
    ) -> None:
        self._pages = pages or {}
        self._message = message

    @hookimpl
    def pages(self) -> list[Page]:
        methods = ("GET", "POST")
        return [
            Page(path, self._serve, methods, public=True, overrides=True) for path in self._pages
        ]

    def _serve(self, request: PageRequest) -> PageResponse:
        responses = self._pages[request.incoming.path]
        status, document = responses.pop(0) if len(responses) > 1 else responses[0]
        return PageResponse(json.dumps(document).encode(), status=status)

    @hookimpl(tryfirst=True)
    def authorize(self, request: IncomingRequest) -> None:
        if self._message is not None and request.path == "/v1/messages":
            raise self._message


def oauth_error(error: str, text: str) -> dict[str, str]:
    return {"error": error, "error_description": text}


# -- the sign-in


async def test_gateway_without_sign_in_is_named_with_its_status(desk: Desk) -> None:
    signs_in = ("CLIENT_ID", "CLIENT_SECRET", "PUBLIC_URL", "SIGNING_KEY", "DB")
    await desk.start(**{f"OIDC_{name}": None for name in signs_in})
    terminal = await desk.begin()
    await terminal.until("The gateway answered HTTP 401")


async def test_gateway_at_another_path_is_named_with_its_status(desk: Desk) -> None:
    await desk.start(plugins=[Faults({"/.well-known/oauth-authorization-server": [(404, {})]})])
    terminal = await desk.begin()
    await terminal.until("The gateway answered HTTP 404")


async def test_too_many_sign_ins_are_shown(desk: Desk) -> None:
    await desk.start()
    while (await desk.signing_in.post("/oauth/device_authorization", surface="x")).status == 200:
        pass
    terminal = await desk.begin()
    await terminal.trust()
    await terminal.until("limiting sign-in attempts")


async def test_denied_sign_in_is_shown(desk: Desk) -> None:
    await desk.start()
    terminal = await desk.begin()
    await terminal.trust()
    code = code_of(await terminal.until("Waiting for sign-in"))
    denied = await desk.signing_in.submit(code, "/device/deny")
    assert denied.status == 200
    await terminal.until("Sign-in was denied in the browser")


@pytest.mark.parametrize(
    ("responses", "said"),
    [
        ([(400, oauth_error("expired_token", "It is too late."))], "Sign-in timed out"),
        ([(400, oauth_error("invalid_scope", "No such scope."))], "HTTP 400"),
        ([(500, oauth_error("server_error", "It broke."))], "HTTP 500"),
        ([(200, {"access_token": "a.b.c", "token_type": "Bearer"})], "malformed response"),
        (
            [
                (429, oauth_error("slow_down", "Too fast.")),
                (400, oauth_error("access_denied", "No.")),
            ],
            "Sign-in was denied in the browser",
        ),
    ],
)
async def test_response_to_a_poll_is_shown(
    desk: Desk,
    responses: list[tuple[int, dict[str, Any]]],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    polls = len(responses)
    monkeypatch.setattr(device_api, "INTERVAL", 1)
    await desk.start(plugins=[Faults({"/oauth/token": responses})])
    terminal = await desk.begin()
    await terminal.trust()
    await terminal.until(said)
    assert len(desk.asked("/oauth/token")) == polls


# -- a person who is signed in

SETTINGS = "/managed/settings"


@pytest.mark.parametrize(
    ("status", "document", "said"),
    [
        (401, {}, "no longer accepts this session"),
        (403, {}, "refused managed settings for this account (403)"),
        *((status, {}, "Couldn't load settings") for status in (429, 500, 503)),
        (200, {"model": "sonnet"}, "Couldn't load settings"),
    ],
)
async def test_settings_that_fail_keep_claude_code_from_starting(
    desk: Desk, status: int, document: dict[str, Any], said: str
) -> None:
    await desk.start(plugins=[Faults({SETTINGS: [(status, document)]})])
    await desk.sign_in()
    exit_status, printed = await desk.say_hello()
    assert (exit_status, said in printed) == (1, True), printed
    assert desk.asked("/v1/messages") == []


def limited(**headers: str) -> Denied:
    given = {f"{UNIFIED}{name.replace('_', '-')}": value for name, value in headers.items()}
    return Denied("Wait a little.", status=429, headers={"X-Should-Retry": "false", **given})


DEFAULT = {"CLAUDE_CODE_MAX_RETRIES": ""}
"""As many retries as Claude Code makes by itself."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AuthenticationFailed("Nobody knows you."), "API Error: 401 Nobody knows you."),
        (Denied("It is not paid.", status=402), "API Error: 402 It is not paid."),
        (Denied("You may not."), "API Error: 403 You may not."),
        (Denied("You may not."), "signing in again won't change this"),
        (limited(), "(not your usage limit) · Wait a little."),
        (limited(Status="rejected"), "(not your usage limit) · Wait a little."),
        (limited(Overage_Disabled_Reason="org_spend_cap_reached"), "Wait a little."),
        (limited(Overage_Disabled_Reason="fetch_error"), "Wait a little."),
        (
            limited(
                Overage_Disabled_Reason="org_spend_cap_reached",
                Representative_Claim="overage",
                Overage_Status="rejected",
            ),
            "You've hit your individual spend limit",
        ),
    ],
)
async def test_refused_message_is_one_request(desk: Desk, error: ProxyError, said: str) -> None:
    await desk.start(plugins=[Faults(message=error)])
    await desk.sign_in()
    exit_status, printed = await desk.say_hello(**DEFAULT)
    assert (exit_status, said in printed) == (1, True), printed
    if error.status == 429 and "usage limit" not in said:
        assert "not your usage limit" not in printed
    assert desk.asked("/v1/messages") == [error.status]


async def test_model_refused_with_400_would_be_many_requests(desk: Desk) -> None:
    """This is why a model that is not allowed is refused with 403."""
    await desk.start(plugins=[Faults(message=Denied("No such model.", status=400))])
    await desk.sign_in()
    _, printed = await desk.say_hello(**DEFAULT)
    assert "API Error: 400 No such model." in printed
    assert len(desk.asked("/v1/messages")) > 1


async def test_gateway_that_is_down_is_shown(desk: Desk) -> None:
    down = Denied("It is down.", status=503)
    await desk.start(plugins=[Faults(message=down)])
    await desk.sign_in()
    exit_status, printed = await desk.say_hello()
    assert (exit_status, "503 It is down." in printed) == (1, True), printed


@pytest.mark.parametrize(("status", "error"), [(401, "invalid_grant"), (500, "server_error")])
async def test_failed_renewal_asks_for_a_sign_in(desk: Desk, status: int, error: str) -> None:
    fault = (status, oauth_error(error, "It is over."))
    await desk.start(plugins=[Faults({"/oauth/token": [fault]})])
    desk.keep({"access_token": "a.b.c", "refresh_token": "of another time"}, left=-60)
    exit_status, printed = await desk.say_hello()
    assert (exit_status, "/login" in printed) == (1, True), printed
    assert desk.asked("/v1/messages") == []
    kept = json.loads(desk.credentials.read_text())["enterpriseGateway"]
    assert ("idpRefreshToken" in kept) == (status == 500)


async def test_expired_sign_in_without_renewal_sends_nothing(desk: Desk) -> None:
    await desk.start()
    await desk.sign_in(left=-60)
    kept = json.loads(desk.credentials.read_text())
    del kept["enterpriseGateway"]["idpRefreshToken"]
    desk.credentials.write_text(json.dumps(kept))
    before = len(desk.signing_in.scene.records.all)
    exit_status, printed = await desk.say_hello()
    assert (exit_status, "Not signed in to the Cloud gateway" in printed) == (1, True), printed
    assert len(desk.signing_in.scene.records.all) == before


async def test_token_in_the_environment_keeps_it_from_starting(desk: Desk) -> None:
    await desk.start()
    await desk.sign_in()
    exit_status, printed = await desk.say_hello(ANTHROPIC_AUTH_TOKEN="token")
    assert (exit_status, "ANTHROPIC_AUTH_TOKEN" in printed) == (1, True), printed
    assert desk.asked("/v1/messages") == []


async def test_list_of_models_is_that_of_the_policy(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text('[[policy]]\nmodels = ["claude-sonnet-*"]')
    await desk.start(OIDC_POLICY_FILE=file, ANSWER_QUOTA_PROBE=True)
    await desk.sign_in()
    desk.skip_first_screens()
    listed = [
        {"type": "model", "id": f"claude-{name}-for-us", "display_name": f"Our {name}"}
        for name in ("sonnet", "haiku")
    ]
    desk.signing_in.scene.upstream.script(json_response({"data": listed, "has_more": False}))
    terminal = Terminal(desk, CLAUDE_CODE_ENABLE_GATEWAY_MODEL_DISCOVERY="1")
    await terminal.until("· Cloud gateway")
    await desk.until(lambda: desk.asked("/v1/models") == [200])
    await terminal.press(b"/model", ENTER)
    screen = await terminal.until("Our sonnet")
    assert "Ourhaiku" not in "".join(screen.split())
