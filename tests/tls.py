"""A certificate authority for tests, and a certificate of the proxy's own."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme


@pytest.fixture(scope="session", autouse=True)
def _no_public_authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trust one authority that issues nothing: each client would load a hundred, in 20 ms."""
    path = tmp_path_factory.mktemp("trusted") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authority's own certificate."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


class OwnTLS(NamedTuple):
    """TLS of the proxy's own.

    :param settings: what `start_proxy` takes. Any: so it takes any setting.
    :param trusting: a client's context.
    """

    settings: dict[str, Any]
    trusting: ssl.SSLContext


@pytest.fixture
def own_tls(authority: trustme.CA, tmp_path: Path) -> OwnTLS:
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return OwnTLS({"TLS_CERT": cert, "TLS_KEY": key}, trusting)
