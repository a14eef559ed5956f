"""Many people sign in and stay signed in, at the real program with a provider beside it.

``pytest -m alone --full-scale -s tests/system/test_sign_in_load.py`` prints the figures of
docs/sign-in.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from copy import copy
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from oidc_provider import CLIENT, CLIENT_SECRET
from proxy_process import ProxyProcess, proxy_process
from signing_in import DEVICE_GRANT, FORM, SIGNING_KEY, claims_of, target_of
from tornadoproxy_oidc import sessions, store

from tornadoproxy.testing import RawConnection, RawResponse, request_bytes

pytestmark = [pytest.mark.alone, pytest.mark.gen_test(timeout=1500), pytest.mark.timeout(1500)]

PEOPLE, FULL_PEOPLE = 2_000, 10_000
AT_ONCE = 8  # people
SEVERAL = 200  # of the people have ten Claude Codes each
MAX_GROWTH = 2_500  # bytes of memory for each person
MAX_STORED = 2_500  # bytes of the database for each person


class Provider:
    """The running script ``people_provider.py``."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.url = url
        self._process = process

    async def refreshes(self) -> int:
        """Return how often refresh tokens were used."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"refreshes\n")
        return int(await self._process.stdout.readline())


@contextlib.asynccontextmanager
async def people_provider() -> AsyncIterator[Provider]:
    """Run the script until the block's end."""
    script = Path(__file__).with_name("people_provider.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdin=PIPE, stdout=PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Provider(process, (await process.stdout.readline()).decode().strip())
    finally:
        process.stdin.close()
        await process.wait()


class Person:
    """A person with a device and a browser.

    :ivar signed_in_at: in monotonic seconds.
    """

    def __init__(self, number: int, base: str, issuer: str) -> None:
        self.name = f"person-{number}"
        self.tokens: dict[str, Any] = {}
        self.signed_in_at = 0.0
        self._issuer = issuer
        self._headers = {
            "Host": urlsplit(base).netloc,
            "X-Forwarded-For": f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",
            "Sec-Fetch-Site": "same-origin",
        }

    async def sign_in(self, connection: RawConnection) -> None:
        begun = await self._post(connection, "/oauth/device_authorization", surface="claude_code")
        device = json.loads(begun.body)
        left = await self._post(connection, "/device", user_code=device["user_code"])
        asked = parse_qs(urlsplit(target_of(left.body.decode())).query)
        code = f"{self.name}:{asked['nonce'][0]}"
        query = urlencode({"code": code, "state": asked["state"][0], "iss": self._issuer})
        cookie = (left.header("set-cookie") or "").partition(";")[0]
        headers = {**self._headers, "Cookie": cookie}
        page = await connection.ask(request_bytes("GET", f"/oauth/callback?{query}", headers))
        assert page.status == 200, page.body
        await self._take(connection, grant_type=DEVICE_GRANT, device_code=device["device_code"])
        self.signed_in_at = time.monotonic()

    async def refresh(self, connection: RawConnection) -> None:
        token = self.tokens["refresh_token"]
        await self._take(connection, grant_type="refresh_token", refresh_token=token)

    async def _take(self, connection: RawConnection, **form: str) -> None:
        response = await self._post(connection, "/oauth/token", **form)
        assert response.status == 200, response.body
        tokens = json.loads(response.body)
        claims = claims_of(tokens["access_token"])
        assert (claims["sub"], claims["groups"]) == (self.name, ["lab"])
        self.tokens = tokens

    async def use(self, connection: RawConnection) -> None:
        """Ask for one's settings, of which there are none."""
        headers = {**self._headers, "Authorization": f"Bearer {self.tokens['access_token']}"}
        response = await connection.ask(request_bytes("GET", "/managed/settings", headers))
        assert response.status == 404, response.body

    async def _post(self, connection: RawConnection, path: str, **form: str) -> RawResponse:
        headers = {**self._headers, "Content-Type": FORM}
        return await connection.ask(request_bytes("POST", path, headers, urlencode(form).encode()))


class Measured:
    """What it took to do something for many people."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self._proxy = proxy
        self._seconds: list[float] = []
        self._cpu = 0.0

    async def each(
        self, people: Iterable[Person], do: Callable[[Person, RawConnection], Awaitable[None]]
    ) -> None:
        """Do it for each person, for `AT_ONCE` at a time."""
        queue = iter(people)
        before = self._proxy.cpu()

        async def work() -> None:
            connection = await RawConnection.open(self._proxy.port)
            for person in queue:
                began = time.perf_counter()
                await do(person, connection)
                self._seconds.append(time.perf_counter() - began)
            await connection.close()

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
        self._cpu += self._proxy.cpu() - before

    def __str__(self) -> str:
        count = len(self._seconds)
        return (
            f"{count:6,} times: {1000 * self._cpu / count:.2f} ms CPU each, "
            f"median {1000 * median(self._seconds):.1f} ms, "
            f"99 % within {1000 * quantiles(self._seconds, n=100)[98]:.1f} ms"
        )


def refresh_by_ten(port: int) -> Callable[[Person, RawConnection], Awaitable[None]]:
    """Return what refreshes in ten processes at once, as ten Claude Codes of a person do."""

    async def refresh(person: Person, _: RawConnection) -> None:
        processes = [copy(person) for _ in range(10)]

        async def one(process: Person) -> None:
            connection = await RawConnection.open(port)
            await process.refresh(connection)
            await connection.close()

        await asyncio.gather(*map(one, processes))
        assert len({each.tokens["refresh_token"] for each in processes}) == 10
        # one of them is the last that writes the file that they share
        person.tokens = processes[3].tokens

    return refresh


async def test_many_people_sign_in_and_refresh(
    full_scale: bool, tmp_path: Path, free_port: int
) -> None:
    count = FULL_PEOPLE if full_scale else PEOPLE
    base = f"http://127.0.0.1:{free_port}"
    where = tmp_path / "oidc.db"
    async with people_provider() as provider:
        settings: dict[str, Any] = {
            "PORT": str(free_port),
            "TRUSTED_PROXIES": "127.0.0.1",
            "OIDC_ISSUER": provider.url,
            "OIDC_CLIENT_ID": CLIENT,
            "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "OIDC_PUBLIC_URL": base,
            "OIDC_SIGNING_KEY": SIGNING_KEY,
            "OIDC_DB": str(where),
            "DISABLED_PLUGINS": "access_log",
        }
        async with proxy_process(tmp_path, "http://127.0.0.1:9", **settings) as proxy:
            people = [Person(number, base, provider.url) for number in range(count)]
            signing_in, refreshing, using = (Measured(proxy) for _ in range(3))
            await signing_in.each(people[:500], Person.sign_in)
            memory = proxy.memory()
            await signing_in.each(people[500:], Person.sign_in)
            grown = proxy.memory() - memory
            # within the grace, a refresh does not ask the provider
            due = people[-1].signed_in_at + sessions.GRACE + 2
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            assert await provider.refreshes() == 0
            several, others = people[:SEVERAL], people[SEVERAL:]
            at_once = Measured(proxy)
            await at_once.each(several, refresh_by_ten(free_port))
            await refreshing.each(others, Person.refresh)
            assert await provider.refreshes() == count, "one question for each person"
            await using.each(people, Person.use)
            grown_at_end = proxy.memory() - memory
            assert proxy.log().count("warning") == 0, proxy.log()
    stored = where.stat().st_size
    with store.database(where).reading() as connection:
        live = store.live_sessions(connection, int(time.time()))
    sys.stdout.write(
        f"\nsign-in   {signing_in}\nrefresh   {refreshing}\nten at once {at_once}\n"
        f"bearer    {using}\nmemory    {memory / 1e6:.0f} MB after 500 people, "
        f"{grown / 1e6:+.1f} MB after all, {grown_at_end / 1e6:+.1f} MB at the end\n"
        f"database  {stored / count:.0f} bytes for each person\n"
    )
    assert {each.person["sub"] for each in live} == {each.name for each in people}
    assert len(live) == count
    assert grown_at_end / count < MAX_GROWTH
    assert stored / count < MAX_STORED
