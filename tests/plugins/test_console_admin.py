"""The web console for administrators without a browser: spend, caps, people, requests."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from pathlib import Path
from urllib.parse import urlencode

from budget_team import ADMIN, READER
from console_site import CANARY, ConsoleSite, hidden, signed_in
from people import MESSAGES, message, pause, until

from tornadoproxy.testing import error_response

KEY = re.compile(r"tp-[0-9a-f]{12}-[A-Za-z0-9_-]{43}")

pytest_plugins = ("console_site",)


# -- Spend


async def test_spend_is_shown_by_person_group_and_model(site: ConsoleSite) -> None:
    await site.start()
    ada, bob = await site.key("ada", groups=["engines"]), await site.key("bob")
    await site.spend(ada, 25)
    await site.spend(bob, 75)
    visitor = await signed_in(site)
    for by, shown in (
        ("person", ("ada", "$0.26", "bob", "$0.76")),
        ("group", ("engines", "$0.26")),
        ("model", ("claude-sonnet-5-5", "$1.02")),
    ):
        assert (await visitor.get(f"/spend?by={by}")).status == 200
        assert [text for text in shown if text not in visitor.page] == []
    day = re.search(r'name="to" type="date" value="([0-9-]+)"', visitor.page)
    assert day
    assert (await visitor.get(f"/spend?from={day[1]}&to={day[1]}")).status == 200
    assert f"<title>Cost, {day[1]}</title>" in visitor.page
    response = await visitor.get(f"/spend.csv?from={day[1]}&to={day[1]}&by=person")
    assert response.header("content-type") == "text/csv; charset=utf-8"
    assert visitor.page.split() == [
        "day,by,requests,cost_usd".replace("by", "person"),
        f"{day[1]},ada,1,0.26",
        f"{day[1]},bob,1,0.76",
    ]


async def test_invalid_range_is_explained(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site)
    for query in (
        "from=2026-01-01&to=2026-03-01",
        "from=2026-02-02&to=2026-02-01",
        "from=x&to=y",
        "from=9999-12-31&to=9999-12-31",
    ):
        assert (await visitor.get(f"/spend?{query}")).status == 400, query
        assert 'role="alert"' in visitor.page
        assert "<h2>Limits</h2>" in visitor.page


async def test_cap_is_set_changed_and_removed(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site)
    await visitor.get("/spend")
    new = hidden(visitor.page, "Set a limit")
    cap = {"type": "rbac_group", "name": "engines", "period": "daily", "shared": "yes"}
    response = await visitor.post("/spend", {**new, **cap, "amount": "$1,500.50"})
    assert response.header("location") == "/console/spend?done=saved#caps"
    (found,) = (await site.call("GET", "/spend_limits"))["data"]
    assert (found["amount"], found["period"]) == ("150050", "daily")
    assert found["scope"] == {"type": "rbac_group", "rbac_group_id": "engines", "shared": True}
    await visitor.get("/spend?done=saved")
    assert "Saved." in visitor.page
    assert "$1,500.50" in visitor.page, "what is left"
    form = hidden(visitor.page, found["id"])
    assert form["amount"] == "1,500.50"
    await visitor.post("/spend", {**form, "amount": ""})
    await visitor.get("/spend")
    (found,) = (await site.call("GET", "/spend_limits"))["data"]
    assert found["amount"] is None
    form = hidden(visitor.page, found["id"])
    await visitor.post("/spend", {**form, "remove": found["id"]})
    assert (await site.call("GET", "/spend_limits"))["data"] == []
    events = (await site.call("GET", "/audit_events"))["data"]
    assert [(each["actor"], each["action"]) for each in events] == [
        *(("admin-key:ops", action) for action in ("delete", "set", "set")),
    ]


async def test_second_of_two_changes_of_a_cap_is_refused(site: ConsoleSite) -> None:
    await site.start()
    await site.call("POST", "/spend_limits", {"scope": {"type": "organization"}, "amount": "100"})
    first, second = await signed_in(site), await signed_in(site)
    for visitor in (first, second):
        await visitor.get("/spend")
    (found,) = (await site.call("GET", "/spend_limits"))["data"]
    assert (
        await first.post("/spend", {**hidden(first.page, found["id"]), "amount": "2"})
    ).status == 303
    form = hidden(second.page, found["id"])
    for change in ({"amount": "3"}, {"remove": found["id"]}):
        assert (await second.post("/spend", {**form, **change})).status == 412
        assert "has changed meanwhile" in second.page
    assert hidden(second.page, found["id"])["amount"] == "2.00", "the page shows what is in force"
    new = {**hidden(second.page, "Set a limit"), "type": "organization", "period": "monthly"}
    assert (await second.post("/spend", {**new, "amount": "4"})).status == 412
    assert (await site.call("GET", "/spend_limits"))["data"][0]["amount"] == "200"


async def test_invalid_cap_is_explained(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site)
    base = {"type": "organization", "name": "", "period": "monthly", "amount": "1"}
    faults: tuple[tuple[dict[str, str], str], ...] = (
        ({"amount": "-1"}, "an amount in dollars"),
        ({"amount": "1.234"}, "an amount in dollars"),
        ({"amount": "NaN"}, "an amount in dollars"),
        ({"type": "user", "name": ""}, "scope.user_id"),
        ({"type": "user", "name": "ada", "shared": "yes"}, "scope.shared"),
        ({"name": "ada"}, "leave it empty"),
        ({"period": "yearly"}, "period: must be"),
        ({"type": CANARY}, "scope.type"),
    )
    for fields, fault in faults:
        await visitor.get("/spend")
        assert fault not in visitor.page
        assert (await visitor.post("/spend", {**base, **fields})).status == 400, fields
        assert fault in visitor.page
        assert (await site.call("GET", "/spend_limits"))["data"] == [], fields


async def test_reader_sees_everything_and_changes_nothing(site: ConsoleSite) -> None:
    await site.start()
    await site.key("ada")
    await site.call("POST", "/spend_limits", {"scope": {"type": "organization"}, "amount": "100"})
    visitor = await signed_in(site, READER)
    for path in ("/spend", "/people", "/people/person?name=ada", "/requests", "/health"):
        assert (await visitor.get(path)).status == 200
        assert re.findall(r'method="post" action="([^"]+)"', visitor.page) == ["/console/sign-out"]
    for path, fields in (
        ("/spend", {"type": "organization", "period": "daily", "amount": "1"}),
        ("/people", {"name": "eve"}),
        ("/people/person", {"person": "ada", "id": "x", "action": "archived"}),
    ):
        await visitor.get("/health")
        assert (await visitor.post(path, fields)).status == 403
        assert "may only read" in visitor.page


# -- People


async def test_key_is_created_and_shown_once(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site)
    await visitor.get("/people")
    fields = {
        **hidden(visitor.page, "Create a key"),
        "name": "ada",
        "groups": "engines, ops",
        "models": "claude-*",
        "expires_at": "2999-01-01",
        "requests_per_minute": "1,000",
        "tokens_per_minute": "",
        "concurrency": "3",
    }
    page = visitor.page
    assert (await visitor.post("/people", fields)).status == 200
    (key,) = KEY.findall(visitor.page)
    assert (await site.request(MESSAGES, message(), token=key)).status == 200
    visitor.page = page
    await visitor.post("/people", fields)
    assert KEY.findall(visitor.page) == [key], "a form that is sent twice creates one key"
    (found,) = (await site.call("GET", "/api_keys"))["data"]
    shown = ("name", "groups", "models", "requests_per_minute", "tokens_per_minute", "concurrency")
    assert [found[each] for each in shown] == [
        "ada",
        ["engines", "ops"],
        ["claude-*"],
        1000,
        None,
        3,
    ]
    for path in ("/people", "/people/person?name=ada"):
        await visitor.get(path)
        assert "ada" in visitor.page
        assert not KEY.search(visitor.page)


async def test_key_is_rotated_disabled_changed_and_revoked(site: ConsoleSite) -> None:
    await site.start()
    old = await site.key("ada")
    visitor = await signed_in(site)

    async def send(action: str, **fields: str) -> int:
        await visitor.get("/people/person?name=ada")
        form = hidden(visitor.page, 'name="action"')
        return (await visitor.post("/people/person", {**form, **fields, "action": action})).status

    async def status_of(key: str) -> int:
        return (await site.request(MESSAGES, message(), token=key)).status

    assert await send("rotate", grace_seconds="3600") == 200
    (new,) = KEY.findall(visitor.page)
    assert [await status_of(key) for key in (old, new)] == [200, 200]
    assert await send("inactive") == 303
    assert await status_of(new) == 401
    assert await send("active") == 303
    assert await send("change", models="claude-opus-*", concurrency="2") == 303
    (found,) = (await site.call("GET", "/api_keys"))["data"]
    assert (found["models"], found["concurrency"]) == (["claude-opus-*"], 2)
    assert await status_of(new) == 403
    assert await send("change", concurrency="many") == 400
    assert "Requests at once: a whole number" in visitor.page
    assert await send("archived") == 303
    assert await status_of(new) == 401
    await visitor.get("/people/person?name=ada")
    assert 'name="action"' not in visitor.page, "a revoked key cannot be changed"


async def test_change_of_a_changed_key_is_refused(site: ConsoleSite) -> None:
    await site.start()
    await site.key("ada")
    visitor = await signed_in(site)
    await visitor.get("/people/person?name=ada")
    form = hidden(visitor.page, 'name="action"')
    await site.call("POST", f"/api_keys/{form['id']}", {"concurrency": 5})
    assert (await visitor.post("/people/person", {**form, "action": "archived"})).status == 412
    assert "has changed meanwhile" in visitor.page
    assert hidden(visitor.page, 'name="action"')["concurrency"] == "5"


async def test_invalid_key_is_explained_and_form_keeps_its_values(site: ConsoleSite) -> None:
    await site.start()
    await site.key("ada")
    visitor = await signed_in(site)
    faults: tuple[tuple[dict[str, str], str], ...] = (
        ({"name": ""}, "name: must be"),
        ({"name": "ada"}, "has the name ada"),
        ({"requests_per_minute": "x"}, "Requests a minute: a whole number"),
        ({"expires_at": "2001-01-01"}, "expires_at: must be in the future"),
    )
    for fields, fault in faults:
        await visitor.get("/people")
        assert fault not in visitor.page
        response = await visitor.post("/people", {"name": "eve", "groups": CANARY, **fields})
        assert response.status in (400, 409), fields
        assert fault in visitor.page
        assert hidden(visitor.page, "Create a key")["groups"] == CANARY
        assert CANARY not in visitor.page


async def test_keys_are_searched_and_paged(site: ConsoleSite) -> None:
    await site.start()
    for number in range(52):
        await site.key(f"person-{number:02}")
    visitor = await signed_in(site)
    await visitor.get("/people?status=active")
    first = re.findall(r">(person-\d+)</a>", visitor.page)
    following = re.search(r'href="/console(/people\?page=[^"]+)">Next page', visitor.page)
    assert following
    await visitor.get(unescape(following[1]))
    second = re.findall(r">(person-\d+)</a>", visitor.page)
    assert (len(first), len(second), len({*first, *second})) == (50, 2, 52)
    await visitor.get("/people?name=person-07")
    assert re.findall(r">(person-\d+)</a>", visitor.page) == ["person-07"]
    await visitor.get("/people?status=archived")
    assert "There are no such keys." in visitor.page


# -- Requests


async def test_requests_are_searched_and_shown(site: ConsoleSite) -> None:
    await site.start()
    ada, bob = await site.key("ada"), await site.key("bob")
    await site.spend(ada)
    await site.spend(bob, 3)
    site.upstream.script(error_response(529, "overloaded_error", "Busy"))
    await site.request(MESSAGES, message(), token=bob)
    visitor = await signed_in(site)
    async with asyncio.timeout(10):
        while "529" not in visitor.page:
            await pause()
            await visitor.get("/requests?principal=bob")
    assert len(re.findall(r'href="/console/requests/one\?id=', visitor.page)) == 2
    assert ">ada<" not in visitor.page
    await visitor.get("/requests?principal=bob&status=error")
    (id_,) = re.findall(r"/requests/one\?id=([\w-]+)", visitor.page)
    assert (await visitor.get(f"/requests/one?id={id_}")).status == 200
    assert f"<code>{id_}</code>" in visitor.page
    assert "default: 529" in visitor.page
    assert (await visitor.get("/requests/one?id=req_none")).status == 404
    assert (await visitor.get("/requests?status=x")).status == 400
    assert "status: must be" in visitor.page


async def test_recording_is_shown_to_those_who_may_change(
    site: ConsoleSite, tmp_path: Path
) -> None:
    await site.start(RECORD_DIR=tmp_path / "records", RECORD_PRINCIPALS="ada")
    ada, bob = await site.key("ada"), await site.key("bob")
    await site.spend(ada, agent=CANARY, content=f"A prompt {CANARY}")
    await site.spend(bob)
    found = (await site.call("GET", "/requests?has_principal=true"))["data"]
    bobs, adas = (each["id"] for each in found)
    await until(200, lambda: site.send("GET", f"/recordings/{adas}"))
    recording = await site.call("GET", f"/recordings/{adas}")
    assert (recording["type"], recording["id"]) == ("recording", adas)
    assert "A prompt" in recording["request"]["body"]["text"]
    assert (await site.fault("GET", f"/recordings/{bobs}"))[0] == 404
    assert (await site.fault("GET", f"/recordings/{adas[:-1]}"))[0] == 404
    assert (await site.fault("GET", f"/recordings/{adas}", key=READER))[0] == 403
    for key, id_, shown in ((ADMIN, adas, True), (ADMIN, bobs, False), (READER, adas, False)):
        visitor = await signed_in(site, key)
        assert (await visitor.get(f"/requests/one?id={id_}")).status == 200
        assert ("A prompt &lt;img" in visitor.page) == shown
        assert ("User-Agent: &lt;img" in visitor.page) == shown
        assert CANARY not in visitor.page
        reads = key == READER
        assert ("no recording of this request" in visitor.page) == (not shown and not reads)
        assert ("administrators cannot see recordings" in visitor.page) == reads


async def test_pages_without_stores_say_so(site: ConsoleSite) -> None:
    await site.start(LEDGER_DB=None, BUDGETS_DB=None)
    visitor = await signed_in(site)
    for path, text in (
        ("/spend", "This proxy has no ledger: LEDGER_DB is not set."),
        ("/spend", "This proxy has no budgets: BUDGETS_DB is not set."),
        ("/requests", "This proxy has no ledger: LEDGER_DB is not set."),
    ):
        assert (await visitor.get(path)).status == 200
        assert text in visitor.page


async def test_names_models_and_groups_are_text(site: ConsoleSite) -> None:
    await site.start()
    visitor = await signed_in(site)
    for name in (CANARY, "\"'><svg onload=alert(1)>", "a&amp;b", "../x?y#z", "é 世"):
        key = await site.key(name, groups=[name], models=["*"])
        limit = {"scope": {"type": "user", "user_id": name}, "amount": "9"}
        await site.call("POST", "/spend_limits", limit)
        await site.spend(key, model=name)
        await visitor.get(f"/people?{urlencode({'name': name})}")
        (target,) = re.findall(r'href="/console(/people/person[^"]+)"', visitor.page)
        for path in ("/people", unescape(target), "/spend", "/requests"):
            assert (await visitor.get(path)).status == 200
            assert name in unescape(visitor.page), (name, path)
            assert name not in visitor.page or not set(name) & set("<&\"'"), (name, path)
