"""Settings that are individually valid but contradictory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tornadoproxy import Secret, Settings, parsers
from tornadoproxy.config.consistency import contradictions, of_upstream
from tornadoproxy.config.core_settings import (
    HOST,
    REUSE_PORT,
    TLS_CERT,
    TLS_KEY,
    UPSTREAM_ALLOW_CLEARTEXT,
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_BASE_URL,
)
from tornadoproxy.config.upstreams import default_upstreams

KEYED = Settings.defaults().replace({UPSTREAM_API_KEY: Secret("k")})


def faults(values: dict[Any, object], settings: Settings = KEYED) -> tuple[str, ...]:
    settings = settings.replace(values)
    (upstream,) = default_upstreams(settings)
    return (*contradictions(settings), *of_upstream(settings, upstream))


def test_default_upstream_without_key_is_a_fault() -> None:
    assert contradictions(KEYED) == ()
    (fault,) = contradictions(Settings.defaults())
    for way_out in ("UPSTREAM_API_KEY", "ANTHROPIC_API_KEY", "UPSTREAM_BASE_URL"):
        assert re.search(rf"\b{way_out}\b", fault)
    assert "`python -m tornadoproxy demo`" in fault
    other: dict[Any, object] = {UPSTREAM_BASE_URL: parsers.base_url("https://gateway.example")}
    assert faults(other, Settings.defaults()) == ()


@pytest.mark.parametrize(
    ("told", "values"),
    [
        ("UPSTREAM_API_KEY and UPSTREAM_API_KEY_FILE are", {UPSTREAM_API_KEY_FILE: Secret("f")}),
        ("REUSE_PORT needs a port, but HOST is a Unix s", {HOST: "unix:/p", REUSE_PORT: True}),
        ("TLS_CERT is set without TLS_KEY: set both, or neither", {TLS_CERT: Path("x.pem")}),
        ("TLS_KEY is set without TLS_CERT: set both, or neither", {TLS_KEY: Path("x.pem")}),
    ],
)
def test_settings_that_contradict_each_other_are_a_fault(
    told: str, values: dict[Any, object]
) -> None:
    (fault,) = faults(values)
    assert fault.startswith(told)


def test_tls_with_files_that_do_not_fit_is_a_fault(tmp_path: Path) -> None:
    certificate, key, other = (tmp_path / name for name in ("cert.pem", "key.pem", "other.pem"))
    issued, another = (trustme.CA().issue_cert("localhost") for _ in range(2))
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    another.private_key_pem.write_to_path(str(other))
    assert faults({TLS_CERT: certificate, TLS_KEY: key}) == ()
    told = "TLS_CERT and TLS_KEY must be a certificate and its key in PEM: "
    assert faults({TLS_CERT: certificate, TLS_KEY: other}) == (f"{told}key values mismatch",)
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    other.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    encrypted = faults({TLS_CERT: certificate, TLS_KEY: other})
    assert encrypted == (f"{told}the key is encrypted: remove its passphrase",)
    certificate.write_text("no")
    (fault,) = faults({TLS_CERT: certificate, TLS_KEY: key})
    assert fault.startswith(told)


OWN = "where this proxy itself listens: set it to the API, or set another PORT"
CLEARTEXT = "UPSTREAM_ALLOW_CLEARTEXT=yes"


UPSTREAMS = {
    OWN: """
        127.0.0.1 https://localhost:8000/a    127.0.0.1 http://0.0.0.0:8000
        0.0.0.0 http://127.0.0.1:8000      :: http://proxy.localhost:8000
        10.0.0.1 http://10.0.0.1:8000      :: http://[::ffff:127.0.0.1]:8000
        proxy.example http://PROXY.example:8000
    """,
    CLEARTEXT: """
        127.0.0.1 http://litellm:4000/v    127.0.0.1 http://[fd00::1]
        127.0.0.1 http://localhost.example
    """,
    "": """
        127.0.0.1 http://127.0.0.1:8001    127.0.0.1 https://10.0.0.1:8000
        10.0.0.1 http://127.0.0.1:8000     0.0.0.0 https://gateway.example:8000
        127.0.0.1 http://localhost:4000    127.0.0.1 http://127.0.0.9:4000
        127.0.0.1 http://[::1]:4000
    """,
}


@pytest.mark.parametrize(("told", "pairs"), UPSTREAMS.items(), ids=["own", "cleartext", "fine"])
def test_upstream_that_is_the_proxy_or_in_cleartext_is_a_fault(told: str, pairs: str) -> None:
    words = iter(pairs.split())
    for host, upstream in zip(words, words, strict=True):
        settings = {HOST: host, UPSTREAM_BASE_URL: parsers.base_url(upstream)}
        found = faults(settings)
        assert len(found) == bool(told), upstream
        for fault in found:
            assert fault.startswith("UPSTREAM_BASE_URL is http")
            assert told in fault, upstream
        allowed = faults({**settings, UPSTREAM_ALLOW_CLEARTEXT: True})
        assert bool(allowed) == (told == OWN), upstream
