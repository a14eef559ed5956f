"""A certificate of the proxy's own, and a client that trusts it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme


class OwnTLS(NamedTuple):
    """TLS of the proxy's own.

    :param settings: what `start_proxy` takes. Any: so it takes any setting.
    :param trusting: a client's context.
    """

    settings: dict[str, Any]
    trusting: ssl.SSLContext


@pytest.fixture
def own_tls(tmp_path: Path) -> OwnTLS:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for part in issued.cert_chain_pems:
        part.write_to_path(cert, append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return OwnTLS({"TLS_CERT": cert, "TLS_KEY": key}, trusting)
