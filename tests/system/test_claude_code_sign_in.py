"""The real Claude Code signs in at the real proxy, works, and signs out.

It runs where ``npm install --prefix tests/system/claude_code`` has been run, as root on Linux.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from desk import DOWN, ENTER, LONG, NEEDED, Desk, Terminal, code_of
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from tornadoproxy_budgets import storage as budgets
from tornadoproxy_budgets.caps import Scope
from tornadoproxy_budgets.money import NANOS_PER_CENT
from tornadoproxy_budgets.periods import day_of
from tornadoproxy_budgets.state import Batch, Subject
from tornadoproxy_oidc import sessions

from tornadoproxy.testing import ScriptedServer, json_response

pytest_plugins = ("desk",)
pytestmark = NEEDED


@LONG
async def test_person_signs_in_works_and_signs_out(desk: Desk) -> None:
    await desk.start(OIDC_LOGIN_NOTICE="Prompts are kept for a month.")
    terminal = await desk.begin()
    await terminal.trust()
    screen = await terminal.until("Waiting for sign-in")
    assert "Promptsarekeptforamonth." in "".join(screen.split())
    page = await desk.signing_in.approve({"user_code": code_of(screen)})
    assert page.status == 200
    await terminal.until("Connected to Cloud gateway")
    await terminal.press(ENTER)
    await terminal.until("Security notes")
    await terminal.press(ENTER)
    await terminal.until("No, exit")
    await terminal.press(DOWN, ENTER)
    await terminal.until("· Cloud gateway")
    bearer = json.loads(desk.credentials.read_text())["enterpriseGateway"]["jwt"]
    await terminal.press(b"Say hello", ENTER)
    await desk.until(lambda: 200 in desk.asked("/v1/messages"))
    answered = [each for each in desk.signing_in.scene.records.all if each.route == "/v1/messages"]
    assert {each.principal for each in answered} == {"ada"}

    await terminal.press(b"/logout", ENTER)
    await desk.until(lambda: len(desk.asked("/oauth/revoke")) >= 2)
    assert desk.asked("/oauth/revoke") == [200, 200]
    assert (await desk.signing_in.get(bearer)).status == 401


@LONG
async def test_signed_in_person_gets_responses_and_new_tokens(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.start()
    await desk.sign_in(left=60)
    monkeypatch.setattr(sessions, "GRACE", -1)
    desk.signing_in.provider.person["groups"] = ["staff"]
    status, printed = await desk.say_hello()
    assert (status, printed.endswith("Say hello\n")) == (0, True), printed
    assert desk.asked("/oauth/token")[-1:] == [200]
    record = next(
        each for each in desk.signing_in.scene.records.all if each.route == "/v1/messages"
    )
    assert (record.principal, record.groups) == ("ada", ("staff",))


@LONG
async def test_person_who_may_no_longer_is_asked_to_sign_in(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    await desk.start()
    await desk.sign_in(left=60)
    monkeypatch.setattr(sessions, "GRACE", -1)
    desk.signing_in.provider.disabled = True
    status, printed = await desk.say_hello()
    assert (status, "no longer accepts this session" in printed) == (1, True), printed
    assert "sign in again with /login" in printed
    assert desk.asked("/v1/messages") == []


@LONG
async def test_refused_model_is_one_request(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "policies.toml"
    file.write_text('[[policy]]\nmodels = ["claude-haiku-*"]\nsettings = {cleanupPeriodDays = 9}')
    await desk.start(OIDC_POLICY_FILE=file)
    await desk.sign_in()
    status, printed = await desk.say_hello(CLAUDE_CODE_MAX_RETRIES="")
    assert status == 1
    assert "403 Your group may use the model claude-haiku-*, and the request asks for" in printed
    assert desk.asked("/v1/messages") == [403]
    assert desk.asked("/managed/settings") == [200]
    kept = json.loads((desk.home / ".claude" / "remote-settings.json").read_text())
    assert kept["cleanupPeriodDays"] == 9
    await desk.say_hello()
    assert desk.asked("/managed/settings") == [200, 304]


@LONG
async def test_spent_cap_is_shown_once(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "budgets.db"
    with budgets.database(path) as database, database.transaction() as connection:
        cap = Scope("user", "ada")
        budgets.set_cap(connection, cap, "monthly", 0, actor="test", now=time.time())
    await desk.start(BUDGETS_DB=path)
    await desk.sign_in()
    status, printed = await desk.say_hello()
    assert (status, "spend limit reached · $0.00 of $0.00 is spent" in printed) == (1, True)
    assert desk.asked("/v1/messages") == [429]


@LONG
async def test_provider_outage_keeps_people_signed_in(desk: Desk) -> None:
    await desk.start()
    await desk.sign_in()
    await desk.signing_in.provider.stop()
    status, printed = await desk.say_hello()
    assert (status, printed.endswith("Say hello\n")) == (0, True), printed


@LONG
@pytest.mark.parametrize("answers", [False, True])
async def test_person_is_warned_before_the_cap(
    desk: Desk, tmp_path: Path, *, answers: bool
) -> None:
    path = tmp_path / "budgets.db"
    now = time.time()
    with budgets.database(path) as database, database.transaction() as connection:
        budgets.set_cap(connection, Scope("user", "ada"), "monthly", 100_000, actor="test", now=now)
        ada: Subject = ("user", "ada")
        budgets.save(connection, Batch({(day_of(now), ada): 82_000 * NANOS_PER_CENT}))
    await desk.start(BUDGETS_DB=path, ANSWER_QUOTA_PROBE=answers)
    await desk.sign_in()
    desk.skip_first_screens()
    terminal = Terminal(desk)
    await terminal.until("You've used 82% of your usage credits")
    assert desk.asked("/v1/messages") == [200]
    assert len(desk.signing_in.scene.upstream.requests) == (not answers)


@LONG
async def test_telemetry_says_who_sent_it(desk: Desk, tmp_path: Path) -> None:
    collector = ScriptedServer()
    await collector.start()
    telemetry = {
        "CLAUDE_CODE_ENABLE_TELEMETRY": "1",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": desk.url,
    }
    (tmp_path / "settings.json").write_text(json.dumps({"env": telemetry}))
    file = tmp_path / "policies.toml"
    file.write_text('[[policy]]\nsettings = "settings.json"')
    desk.signing_in.provider.person["groups"] = ["lab", "staff"]
    await desk.start(OIDC_POLICY_FILE=file, OIDC_OTLP_ENDPOINT=collector.url)
    await desk.sign_in()
    collector.script(json_response({}))
    status, printed = await desk.say_hello()
    assert status == 0, printed
    await collector.received()
    await collector.requests[0].complete()
    sent = ExportLogsServiceRequest.FromString(collector.requests[0].body)
    await collector.stop()
    expected = [
        ("identity.source", "gateway-oidc"),
        ("user.email", "ada@acme.example"),
        ("user.groups", "lab,staff"),
        ("user.id", "ada"),
    ]
    names = [name for name, _ in expected]
    for logs in sent.resource_logs:
        # what the proxy writes is what Claude Code itself writes into each record
        records = [record for scope in logs.scope_logs for record in scope.log_records]
        for attributes in (logs.resource.attributes, *(each.attributes for each in records)):
            said = [(each.key, each.value.string_value) for each in attributes]
            assert sorted(each for each in said if each[0] in names) == expected
        assert records
    assert sent.resource_logs
