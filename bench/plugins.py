"""The proxy with one more of its own plugins at a time, to see what each adds."""

from __future__ import annotations

import secrets
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.peers import Peer, proxy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

OPTIONAL = ("prices", "keys", "ledger", "budgets", "metrics", "otel")

BARE = "bare"
"""The name of the row with none of them, where usage is not read either."""

PRICES = "prices"
"""The name of the row that one has without doing anything: tokens are read, and priced."""

ROWS = {
    BARE: (),
    PRICES: ("prices",),
    "keys": ("prices", "keys"),
    "ledger": ("prices", "ledger"),
    "keys+ledger": ("prices", "keys", "ledger"),
    "budgets": ("prices", "budgets"),
    "metrics": ("prices", "metrics"),
    "otel": ("prices", "otel"),
    "all": OPTIONAL,
}

SHARED = "shared"
"""The name of the row with keys that have limits, ledger and budgets, on PostgreSQL and Redis."""

JUDGED = (PRICES, "keys+ledger", SHARED)
"""The names of the rows that have a target."""

_NOT_LOOKED_INTO = (
    "from tornadoproxy.protocol.usage_reader import UsageReader; "
    "UsageReader.for_response = classmethod(lambda *_: None); "
)


def with_plugins(python: str, checkout: Path, shared: Mapping[str, str] | None) -> list[Peer]:
    """A peer for each row: the proxy with these plugins, the others disabled.

    :param shared: the variables of the row `SHARED`; without them there is none.
    """
    peers = [_peer(name, python, checkout, plugins) for name, plugins in ROWS.items()]
    if shared is not None:
        plugins = ("prices", "keys", "ledger", "budgets")
        peers.append(_peer(SHARED, python, checkout, plugins, shared))
    return peers


def _peer(
    name: str,
    python: str,
    checkout: Path,
    plugins: tuple[str, ...],
    shared: Mapping[str, str] | None = None,
) -> Peer:
    def flags(start: list[str], upstream: int, folder: Path) -> list[str]:
        databases: dict[str, list[str]] = {
            plugin: [] if shared else [f"--{plugin}-db", str(folder / f"{plugin}.sqlite3")]
            for plugin in OPTIONAL
        }
        environment = dict(shared or {})

        def run(*arguments: str) -> str:
            command = [*start, *arguments]
            return subprocess.run(
                command, env=environment, cwd=folder, check=True, capture_output=True, text=True
            ).stdout

        given: list[str] = []
        disabled = [plugin for plugin in OPTIONAL if plugin not in plugins]
        if disabled:
            given += ["--disabled-plugins", " ".join(disabled)]
        if "keys" in plugins:
            # each process has a key of its own, of which the database may have others
            create = ["keys", "create", "--name", f"bench-{secrets.token_hex(4)}"]
            if shared:
                create += ["--requests-per-minute", "1000000000", "--concurrency", "1000000"]
            created = run(*create, *databases["keys"])
            (token,) = (word for word in created.split() if word.startswith("tp-"))
            (folder / "token").write_text(token)
            given += databases["keys"]
        if "ledger" in plugins:
            given += databases["ledger"]
        if "budgets" in plugins:
            cap = ("--everyone", "--period", "monthly", "--amount", "1000000")
            run("budgets", "set", *cap, *databases["budgets"])
            given += databases["budgets"]
        if "metrics" in plugins:
            given += ["--metrics", "yes"]
        if "otel" in plugins:
            endpoint = f"http://127.0.0.1:{upstream}"
            given += ["--otel-traces", "yes", "--otel-exporter-otlp-endpoint", endpoint]
        return given

    first = "" if plugins else _NOT_LOOKED_INTO
    peer = proxy(name, python, checkout, uvloop=False, first=first, flags=flags)
    return replace(peer, environment={**peer.environment, **(shared or {})})
