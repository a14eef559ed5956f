"""A team that has used a proxy with a web console for two weeks, for its screenshots.

Everything is the same in each run: the clock begins at `NOW`, and chance has a seed. The people are
called by their roles.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from console_site import ConsoleSite
from held_stream import EVENT_STREAM
from msgspec.structs import replace
from people import MESSAGES, message, pause
from scene import Scene
from tornadoproxy_budgets import storage
from tornadoproxy_budgets.periods import day_of
from tornadoproxy_budgets.state import Batch, Seen, Subject
from tornadoproxy_console.live import Live
from tornadoproxy_keys import changes, store
from tornadoproxy_ledger import rows

from tornadoproxy import Database, RequestRecord, Usage
from tornadoproxy.testing import (
    Proxy,
    RawConnection,
    UpstreamExchange,
    error_response,
    json_response,
    message_document,
    message_events,
    request_bytes,
    request_record,
)

NOW = 1_773_310_440.0  # 12 March 2026, 10:14 in UTC, a Thursday
DAY, DAYS = 86_400, 14
OPUS, SONNET, HAIKU = "claude-opus-5-5", "claude-sonnet-5-5", "claude-haiku-5-5"
# with their groups, how much they use, and the models that they use
PEOPLE: dict[str, tuple[tuple[str, ...], float, tuple[str, ...]]] = {
    "backend": (("product",), 1.0, (OPUS, SONNET)),
    "ci-review": (("platform",), 0.9, (SONNET, HAIKU)),
    "data-analysis": (("research",), 0.8, (OPUS,)),
    "mobile": (("product",), 0.6, (SONNET,)),
    "frontend": (("product",), 0.5, (SONNET,)),
    "security": (("platform",), 0.4, (OPUS, SONNET)),
    "support-tools": (("operations",), 0.3, (HAIKU,)),
    "docs": (("operations",), 0.2, (SONNET, HAIKU)),
}
# in nanos for a token of the input, the cache, and the output
RATES = {OPUS: (4000, 200, 20_000), SONNET: (2000, 100, 10_000), HAIKU: (800, 40, 4000)}


class Kept(Live):
    """What the console shows of the present, which this adds requests to."""

    made: list[Kept] = []  # noqa: RUF012  # the one that the proxy uses is the last

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)


class Unfinished:
    """A stream that stops within its content.

    :param words: of its content, about five bytes each.
    """

    def __init__(self, model: str, words: int) -> None:
        self._document = message_document("word " * words, model=model)

    async def __call__(self, exchange: UpstreamExchange) -> None:
        await exchange.read_all()
        await exchange.head(200, EVENT_STREAM)
        await exchange.chunk(b"".join(message_events(self._document)[:-3]))
        await exchange.disconnected()


class TeamSite(ConsoleSite):
    """The proxy of the team.

    :ivar keys: each person's.
    """

    def __init__(self, scene: Scene, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(scene, folder / "console.db")
        clock, began = time.time, time.time()
        monkeypatch.setattr(time, "time", lambda: NOW + clock() - began)
        monkeypatch.setattr("tornadoproxy_console.live.Live", Kept)
        self._folder = folder
        self._chance = random.Random(7)
        self._open: list[RawConnection] = []
        self.keys: dict[str, str] = {}

    async def start(self, plugins: Any = (), **variables: Any) -> Proxy:
        entries = [
            f'[[upstream]]\nname = "{name}"\nbase_url = "{self.upstream.url}"\n'
            f'api_key = "sk-{name}-{"x" * 20}"\n'
            for name in ("europe", "america")
        ]
        file = self._folder / "upstreams.toml"
        file.write_text("\n".join(entries))
        self._fill()
        variables = {"UPSTREAMS_FILE": file, "UPSTREAM_BASE_URL": None, **variables}
        self.settings.pop("DISABLED_PLUGINS")
        proxy = await self.start_proxy(plugins=plugins, **{**self.settings, **variables})
        await self._limit()
        await self._ask(proxy)
        return proxy

    async def close(self) -> None:
        """End the requests in flight."""
        for client in self._open:
            await client.close()

    def _fill(self) -> None:
        by = changes.By("command-line:ops", None, None)
        with store.database(self.settings["KEYS_DB"]) as opened, opened.transaction() as connection:
            for number, (name, (groups, _, _)) in enumerate(PEOPLE.items()):
                limits = store.Limits(requests_per_minute=120) if number % 3 == 1 else None
                at = int(NOW) - (60 - number) * DAY
                _, self.keys[name] = changes.create(
                    connection, name, groups, limits or store.Limits(), None, at, by
                )
        records = list(self._history())
        spent: dict[tuple[int, Subject], int] = defaultdict(int)
        for record in records:
            day, cost = day_of(record.time), record.cost or 0
            spent[day, ("user", str(record.principal))] += cost
            spent[day, ("rbac_group", record.groups[0])] += cost
        people = {name: Seen(names) for name, (names, _, _) in PEOPLE.items()}
        ledger = Database(self.settings["LEDGER_DB"], rows.SCHEMA, name="ledger")
        with ledger, ledger.transaction() as connection:
            rows.insert(records, connection)
        budgets = storage.database(self.settings["BUDGETS_DB"])
        with budgets, budgets.transaction() as connection:
            storage.save(connection, Batch(dict(spent), people))

    def _history(self) -> Iterator[RequestRecord]:
        """Yield two weeks of requests, the last of them a moment ago."""
        today = int(NOW) // DAY * DAY
        for day in range(today - (DAYS - 1) * DAY, today + DAY, DAY):
            weight = 0.15 if time.gmtime(day).tm_wday > 4 else self._chance.uniform(0.75, 1.1)
            for name, (_, share, _) in PEOPLE.items():
                until = NOW - 120 if day == today else day + 18 * 3600
                hours = (until - day) / 3600 - 7
                for _ in range(int(20 * share * weight * hours)):
                    yield self._record(name, day + (7 + hours * self._chance.random()) * 3600)

    def _record(self, name: str, at: float, **fields: Any) -> RequestRecord:
        groups, _, models = PEOPLE[name]
        model = self._chance.choice(models)
        output = int(self._chance.lognormvariate(6.3, 0.8))
        usage = Usage(self._chance.randrange(40, 4000), output, self._chance.randrange(90_000))
        counts = (usage.input_tokens, usage.cache_read_input_tokens, output)
        cost = sum(rate * (count or 0) for rate, count in zip(RATES[model], counts, strict=True))
        if self._chance.random() < 0.012:
            fields = {"status": 529, "usage": Usage(), "cost": None, **fields}
        return request_record(
            **{
                "time": at,
                "request_id": f"req_{self._chance.randrange(16**24):024x}",
                "principal": name,
                "groups": groups,
                "model": model,
                "usage": usage,
                "cost": cost,
                "duration": output / 80 + self._chance.random(),
                "time_to_first_token": self._chance.uniform(0.5, 1.6),
                "upstream": self._chance.choice(("europe", "europe", "america")),
                "attempts": 1,
                **fields,
            }
        )

    async def _limit(self) -> None:
        product = {"type": "rbac_group", "rbac_group_id": "product"}
        for scope, amount, period in (
            ({"type": "organization"}, "6000", "monthly"),
            ({**product, "shared": True}, "25000", "monthly"),
            ({"type": "user", "user_id": "data-analysis"}, "12000", "monthly"),
            ({"type": "user", "user_id": "ci-review"}, "800", "daily"),
        ):
            wanted = {"scope": scope, "amount": amount, "period": period}
            await self.call("POST", "/spend_limits", wanted)
        response = await self.request(
            "/v1/spend_limit_increase_requests",
            {"period": "monthly", "requested_amount": "9000", "reason": "Migration of the API"},
            token=self.keys["backend"],
        )
        assert response.status == 200

    async def _ask(self, proxy: Proxy) -> None:
        """Send requests: some have ended a moment ago, and some are in flight."""
        for number in range(240):
            failed = number == 5
            self.upstream.script(
                error_response(529, "overloaded_error", "Busy")
                if failed
                else json_response(message_document("Hi", usage={"input_tokens": 1}))
            )
            await self.request(MESSAGES, message(), token=self.keys["security"])
        await self._forget()
        for second in range(50, 1, -1):
            record = self._record(self._chance.choice(list(PEOPLE)), 0.0)
            ended = NOW - second * 1.1
            Kept.made[-1].finished(replace(record, time=ended - record.duration))
        for age, name, model, words in (
            (74, "data-analysis", OPUS, 2900),
            (31, "backend", OPUS, 1300),
            (9, "mobile", SONNET, 420),
            (4, "ci-review", SONNET, 90),
        ):
            await self._begin(proxy, age, name, model, words)

    async def _forget(self) -> None:
        """Remove what has been sent from the ledger: it took less time than requests take."""
        sent = "/requests?limit=1000&has_principal=true&starting_at=2026-03-12T10:14:00Z"
        while len((await self.call("GET", sent))["data"]) < 241:
            await pause()
        ledger = Database(self.settings["LEDGER_DB"], rows.SCHEMA, name="ledger")
        with ledger, ledger.transaction() as connection:
            connection.execute("DELETE FROM requests WHERE time >= ?", (NOW,))

    async def _begin(self, proxy: Proxy, age: int, name: str, model: str, words: int) -> None:
        """Begin a stream as if it had begun some seconds ago."""
        self.upstream.script(Unfinished(model, words))
        client = await self.raw()
        self._open.append(client)
        body = json.dumps(message(4000, model=model, stream=True)).encode()
        await client.send(request_bytes("POST", MESSAGES, body=body, token=self.keys[name]))
        assert (await client.head()).status == 200
        gateway = proxy.server._gateway
        assert gateway is not None
        while [each.usage.output_tokens or 0 for each in gateway.in_flight.snapshots()][-1] < words:
            await client.chunk()
        newest = max(gateway.in_flight, key=lambda each: each.exchange.started_at)
        newest.exchange.started -= age
        newest.exchange.started_at -= age
