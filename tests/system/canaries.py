"""Credentials that are planted, and where they turn up in text."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from tornadoproxy.cli import main as cli

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest


TOKEN = "canary-token-Wq7Zr2Lx9/+"
OTHER_TOKEN = "canary-other-token-Kd83Jf0"
NEW_TOKEN = "canary-new-token-Pm55Vb1"
KEY = "canary-key-Xs49Nc6/+"
NEW_KEY = "canary-new-key-Tg12Hy8"
EGRESS_PASSWORD = "canary-egress-Bn66Rt3"
GUESS = "canary-guess-Lo01Qa7"
ADMIN_KEY = "canary-admin-key-of-32-characters-Hj45Sd6/+"
READ_KEY = "canary-read-key-of-32-characters-Yt09Bw1"
COLLECTOR_KEY = "canary-collector-Ek62Zu3"
COOKIE = "canary-cookie-Ui98Me4"
QUERY = "canary-query-Zx34Cv5"
BODY = "canary-body-Fg77Jk2"

CLIENTS = [TOKEN, OTHER_TOKEN, NEW_TOKEN, GUESS, COOKIE]  # never upstream
PLUGINS_OWN = [ADMIN_KEY, READ_KEY, COLLECTOR_KEY]
OURS = [  # never to a client
    *(TOKEN, OTHER_TOKEN, NEW_TOKEN, KEY, NEW_KEY, EGRESS_PASSWORD),
    *PLUGINS_OWN,
]
CREDENTIALS = [*OURS, GUESS, COOKIE]
EVERYTHING = [*CREDENTIALS, QUERY, BODY]  # in no log, ever

MESSAGE = json.dumps(
    {
        "model": "claude-sonnet-5-5",
        "max_tokens": 40,
        "messages": [{"role": "user", "content": BODY}],
    }
).encode()
STREAM = MESSAGE[:-1] + b', "stream": true}'
SAID = [{"role": "user", "content": BODY}]
CHAT = {"model": "claude-sonnet-5-5", "messages": SAID}


def disguises(canary: str) -> set[bytes]:
    """The canary, and what it looks like once it has been encoded."""
    plain = canary.encode()
    return {
        plain,
        plain.hex().encode(),
        quote(canary, safe="").encode(),
        repr(canary)[1:-1].encode(),
        json.dumps(canary)[1:-1].encode(),
        json.dumps(canary)[1:-1].replace("/", "\\/").encode(),
        # base64 of what ends in it, as in Basic credentials, whatever stands before
        *(base64.b64encode(b"x" * lead + plain)[4:-4] for lead in range(3)),
    }


def found(canaries: Iterable[str], text: bytes) -> list[str]:
    """Those of the canaries that are in `text`, in whatever disguise."""
    return [canary for canary in canaries if any(each in text for each in disguises(canary))]


PLUGINS_SETTINGS = {
    "KEYS_DB": "keys.db",
    "BUDGETS_DB": "budgets.db",
    "BUDGETS_ADMIN_KEY": f"ops={ADMIN_KEY}",
    "BUDGETS_ADMIN_READ_KEY": READ_KEY,
    "LEDGER_DB": "ledger.db",
    "METRICS": "yes",
    "OTEL_TRACES": "yes",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
    "OTEL_EXPORTER_OTLP_HEADERS": f"x-key={COLLECTOR_KEY}",
}


def key_of(
    name: str, directory: Path, capfd: pytest.CaptureFixture[str], command: str = "create"
) -> str:
    """A key that a command makes, which is shown once."""
    environment = {"KEYS_DB": str(directory / "keys.db")}
    given = ["--name", name] if command == "create" else [name]
    assert cli.main(["keys", command, *given], environment) == 0
    output, errors = capfd.readouterr()
    key = output.strip()
    assert key.startswith("tp-")
    assert found([key], errors.encode()) == []
    return key
