"""A provider with many people, as a program: it prints its issuer, and its figures when told to.

A line ``refreshes`` on its standard input is answered with how often refresh tokens were used; its
end ends the program.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

sys.path.insert(0, str(Path(__file__).parent.parent))

from oidc_provider import CLIENT, KEYS, ScriptedProvider

from tornadoproxy.testing import ReceivedRequest


class PeopleProvider(ScriptedProvider):
    """A provider whose codes are ``NAME:NONCE``, and whose refresh tokens are used once."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = [KEYS["second"]]
        self._valid: dict[str, str] = {}

    def _redeem(self, request: ReceivedRequest) -> tuple[dict[str, Any], int]:
        self.requests.clear()
        form = {name: value for name, (value,) in parse_qs(request.body.decode()).items()}
        if form["grant_type"] == "refresh_token":
            self.refreshes += 1
            name = self._valid.pop(form["refresh_token"], "")
            if not name:
                return {"error": "invalid_grant"}, 400
            nonce = None
        else:
            name, _, nonce = form["code"].partition(":")
        refresh_token = f"{name}-{self.refreshes}-{time.monotonic_ns()}"
        self._valid[refresh_token] = name
        person = {"sub": name, "email": f"{name}@acme.example", "groups": ["lab"]}
        claims: dict[str, Any] = {"aud": CLIENT, "iat": int(time.time()), "nonce": nonce, **person}
        tokens = {"access_token": "x", "token_type": "Bearer", "refresh_token": refresh_token}
        return {**tokens, "id_token": self.token(self.keys[0], **claims)}, 200


async def main() -> None:
    """Serve until the standard input ends."""
    provider = PeopleProvider()
    await provider.start()
    sys.stdout.write(f"{provider.url}\n")
    sys.stdout.flush()
    while await asyncio.to_thread(sys.stdin.readline):
        sys.stdout.write(f"{provider.refreshes}\n")
        sys.stdout.flush()
    await provider.stop()


asyncio.run(main())
