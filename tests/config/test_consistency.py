"""Settings that are individually valid but contradictory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tornadoproxy import Secret, Settings, parsers
from tornadoproxy.config.consistency import contradictions
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

if TYPE_CHECKING:
    from tornadoproxy import Setting

KEYED = Settings.defaults().replace({UPSTREAM_API_KEY: Secret("k")})


def test_settings_with_a_key_are_consistent() -> None:
    assert contradictions(KEYED) == ()


def test_default_upstream_without_key_is_a_fault() -> None:
    (fault,) = contradictions(Settings.defaults())
    for way_out in ("UPSTREAM_API_KEY", "ANTHROPIC_API_KEY", "UPSTREAM_BASE_URL"):
        assert re.search(rf"\b{way_out}\b", fault)
    assert "`python -m tornadoproxy demo`" in fault


def test_other_upstream_without_key_is_consistent() -> None:
    url = parsers.base_url("https://gateway.example")
    assert contradictions(Settings.defaults().replace({UPSTREAM_BASE_URL: url})) == ()


def test_key_and_key_file_contradict() -> None:
    settings = KEYED.replace({UPSTREAM_API_KEY_FILE: Secret("f")})
    assert contradictions(settings) == (
        "UPSTREAM_API_KEY and UPSTREAM_API_KEY_FILE are both set: unset one of them",
    )


@pytest.mark.parametrize(("given", "missing"), [(TLS_CERT, "TLS_KEY"), (TLS_KEY, "TLS_CERT")])
def test_tls_with_one_file_is_a_fault(given: Setting[Path | None], missing: str) -> None:
    (fault,) = contradictions(KEYED.replace({given: Path("x.pem")}))
    assert fault.startswith(f"{given.name} is set without {missing}: set both, or neither")


def test_tls_with_certificate_and_key_is_consistent(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, "a")
    assert contradictions(KEYED.replace({TLS_CERT: certificate, TLS_KEY: key})) == ()


def test_tls_key_of_another_certificate_is_a_fault(tmp_path: Path) -> None:
    certificate, _ = pair(tmp_path, "a")
    _, key = pair(tmp_path, "b")
    assert contradictions(KEYED.replace({TLS_CERT: certificate, TLS_KEY: key})) == (
        "TLS_CERT and TLS_KEY must be a certificate and its key in PEM: key values mismatch",
    )


def test_tls_key_encrypted_is_a_fault_without_a_prompt(tmp_path: Path) -> None:
    certificate, key = pair(tmp_path, "a")
    encrypt(key)
    (fault,) = contradictions(KEYED.replace({TLS_CERT: certificate, TLS_KEY: key}))
    assert fault.endswith("the key is encrypted: remove its passphrase")


@pytest.mark.parametrize("content", ["", "no"])
def test_tls_certificate_not_pem_is_a_fault(tmp_path: Path, content: str) -> None:
    certificate, key = pair(tmp_path, "a")
    certificate.write_text(content)
    (fault,) = contradictions(KEYED.replace({TLS_CERT: certificate, TLS_KEY: key}))
    assert fault.startswith("TLS_CERT and TLS_KEY must be a certificate and its key in PEM: ")


@pytest.mark.parametrize(
    ("host", "upstream"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("127.0.0.1", "https://localhost:8000/a"),
        ("127.0.0.1", "http://[::1]:8000"),
        ("127.0.0.1", "http://0.0.0.0:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://proxy.localhost:8000"),
        ("::", "http://[::ffff:127.0.0.1]:8000"),
        ("10.0.0.1", "http://10.0.0.1:8000"),
        ("proxy.example", "http://PROXY.example:8000"),
    ],
)
def test_upstream_that_is_the_proxy_itself_is_a_fault(host: str, upstream: str) -> None:
    settings = KEYED.replace({HOST: host, UPSTREAM_BASE_URL: parsers.base_url(upstream)})
    (fault,) = contradictions(settings)
    assert fault.startswith("UPSTREAM_BASE_URL is http")
    assert "where this proxy itself listens: set it to the API, or set another PORT" in fault


@pytest.mark.parametrize(
    ("host", "upstream"),
    [
        ("127.0.0.1", "http://127.0.0.1:8001"),
        ("127.0.0.1", "https://10.0.0.1:8000"),
        ("10.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "https://gateway.example:8000"),
    ],
)
def test_upstream_elsewhere_is_consistent(host: str, upstream: str) -> None:
    settings = KEYED.replace({HOST: host, UPSTREAM_BASE_URL: parsers.base_url(upstream)})
    assert contradictions(settings) == ()


@pytest.mark.parametrize(
    ("upstream", "is_refused"),
    [
        ("http://gateway.example", True),
        ("http://10.0.0.1:4000", True),
        ("http://litellm:4000/v", True),
        ("http://[fd00::1]", True),
        ("http://localhost.example", True),
        ("https://gateway.example", False),
        ("http://localhost:4000", False),
        ("http://127.0.0.9:4000", False),
        ("http://[::1]:4000", False),
    ],
)
def test_upstream_in_cleartext_elsewhere_must_be_allowed(upstream: str, is_refused: bool) -> None:
    settings = KEYED.replace({UPSTREAM_BASE_URL: parsers.base_url(upstream)})
    faults = contradictions(settings)
    assert ["UPSTREAM_ALLOW_CLEARTEXT=yes" in fault for fault in faults] == [True] * is_refused
    assert contradictions(settings.replace({UPSTREAM_ALLOW_CLEARTEXT: True})) == ()


def test_reuse_port_with_a_unix_socket_is_a_fault() -> None:
    (fault,) = contradictions(KEYED.replace({HOST: "unix:/run/p", REUSE_PORT: True}))
    assert fault.startswith("REUSE_PORT needs a port, but HOST is a Unix socket: ")


def pair(directory: Path, name: str) -> tuple[Path, Path]:
    """Return the files of a certificate and its key."""
    issued = trustme.CA().issue_cert("localhost")
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    issued.private_key_pem.write_to_path(str(key))
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(certificate), append=index > 0)
    return certificate, key


def encrypt(key: Path) -> None:
    """Encrypt the private key in a file, in place."""
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
