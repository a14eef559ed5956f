"""Requests for a higher limit in the web console: a person asks, an administrator answers."""

from __future__ import annotations

import pytest
from budget_team import READER
from console_site import CANARY, ConsoleSite, Visitor, hidden, signed_in

pytest_plugins = ("console_site",)


async def asking(site: ConsoleSite, **fields: str) -> Visitor:
    """A person who has asked for a higher limit, and is on their page."""
    await site.start()
    await site.call("POST", "/spend_limits", {"scope": {"type": "organization"}, "amount": "200"})
    key = await site.key("ada")
    await site.spend(key, 25)
    person = await signed_in(site, key)
    await person.get("/me")
    fields = {"period": "monthly", "amount": "50", "reason": CANARY, **fields}
    response = await person.post("/me", fields)
    assert response.header("location") == "/console/me?done=asked"
    await person.get("/me?done=asked")
    assert "Your request was sent to the administrators." in person.page
    return person


@pytest.mark.parametrize(("answer", "state"), [("approve", "approved"), ("deny", "denied")])
async def test_person_asks_and_administrator_answers(
    answer: str, state: str, site: ConsoleSite
) -> None:
    person = await asking(site)
    assert "not answered yet" in person.page
    administrator = await signed_in(site)
    await administrator.get("/spend")
    for page in (person.page, administrator.page):
        assert "$50.00" in page
        assert "&lt;img src=x" in page
        assert CANARY not in page
    assert "$0.26" in administrator.page, "what they have spent"
    form = hidden(administrator.page, 'value="approve"')
    assert form["amount"] == "50.00"
    response = await administrator.post(
        "/spend/increases", {**form, "amount": "12.50", "action": answer}
    )
    assert response.header("location") == f"/console/spend?done={state}#increases"
    await administrator.get(f"/spend?done={state}")
    assert "Requests for a higher limit" not in administrator.page
    await person.get("/me")
    assert f">{state}</span>" in person.page
    assert ("left of $12.50" in person.page) == (answer == "approve")
    events = (await site.call("GET", "/audit_events"))["data"]
    assert ("admin-key:ops", answer) in [(each["actor"], each["action"]) for each in events]
    response = await administrator.post("/spend/increases", {**form, "action": answer})
    assert response.status in (303, 400, 412), "an answer that is sent twice changes nothing"
    assert len((await site.call("GET", "/spend_limits"))["data"]) == (
        2 if state == "approved" else 1
    )


async def test_request_without_amount_and_reason_is_sent(site: ConsoleSite) -> None:
    person = await asking(site, amount="", reason="", period="daily")
    assert "a day" in person.page
    (found,) = (await site.call("GET", "/spend_limit_increase_requests"))["data"]
    assert (found["requested_amount"], found["reason"], found["period"]) == (None, None, "daily")


async def test_second_request_for_a_period_changes_nothing(site: ConsoleSite) -> None:
    person = await asking(site)
    same = {"period": "monthly", "amount": "50", "reason": CANARY}
    for fields, done in ((same, "asked"), ({**same, "amount": "70"}, "pending")):
        await person.get("/me")
        response = await person.post("/me", fields)
        assert response.header("location") == f"/console/me?done={done}"
    await person.get("/me?done=pending")
    assert "was not changed" in person.page
    (found,) = (await site.call("GET", "/spend_limit_increase_requests"))["data"]
    assert found["requested_amount"] == "5000"


async def test_invalid_request_is_explained_and_form_keeps_its_values(site: ConsoleSite) -> None:
    await site.start()
    person = await signed_in(site, await site.key())
    await person.get("/me")
    response = await person.post("/me", {"period": "daily", "amount": "x", "reason": "Release"})
    assert response.status == 400
    assert "an amount in dollars" in person.page
    assert hidden(person.page, 'name="reason"')["reason"] == "Release"
    assert (await person.post("/me", {"period": "yearly"})).status == 400
    assert (await site.call("GET", "/spend_limit_increase_requests"))["data"] == []


async def test_reader_sees_requests_and_cannot_answer(site: ConsoleSite) -> None:
    await asking(site)
    reader = await signed_in(site, READER)
    await reader.get("/spend")
    assert "Requests for a higher limit" in reader.page
    assert 'value="approve"' not in reader.page
    (found,) = (await site.call("GET", "/spend_limit_increase_requests"))["data"]
    fields = {"id": found["id"], "action": "approve", "amount": "1"}
    assert (await reader.post("/spend/increases", fields)).status == 403


async def test_person_cannot_answer(site: ConsoleSite) -> None:
    person = await asking(site)
    (found,) = (await site.call("GET", "/spend_limit_increase_requests"))["data"]
    fields = {"id": found["id"], "action": "approve", "amount": "9999"}
    assert (await person.post("/spend/increases", fields)).status == 404


async def test_without_budgets_there_is_no_form(site: ConsoleSite) -> None:
    await site.start(BUDGETS_DB=None)
    person = await signed_in(site, await site.key())
    await person.get("/me")
    assert "Ask for a higher limit" not in person.page
