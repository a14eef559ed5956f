"""TLS to PostgreSQL and Redis: their certificates, by a private authority."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import postgres
import pytest
import redis_server
import trustme
from redis_server import Certificate, RedisCluster, RedisSentinel, RedisServer

from bench import postgresql
from tornadoproxy import ConfigurationError, Database, Script, SecretURL, SharedCounters

SCHEMA = ("CREATE TABLE numbers (number INTEGER NOT NULL);",)


@pytest.fixture(scope="session")
def certificate(
    authority: trustme.CA, ca_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Certificate:
    """A server's certificate, for one of the names of this machine alone."""
    directory = tmp_path_factory.mktemp("certificate")
    issued = authority.issue_cert("127.0.0.1")
    made = Certificate(directory / "cert.pem", directory / "key.pem", ca_file)
    issued.cert_chain_pems[0].write_to_path(made.cert)
    issued.private_key_pem.write_to_path(made.key)
    return made


@pytest.fixture
def foreign_ca(tmp_path: Path) -> Path:
    """The file of an authority that has not issued the certificate."""
    path = tmp_path / "foreign.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return path


# -- PostgreSQL


@pytest.fixture(scope="session")
def encrypted_postgres(certificate: Certificate) -> Iterator[postgres.PostgreSQLServer]:
    if postgresql.program("postgres") is None:
        pytest.skip("PostgreSQL is absent")
    with tempfile.TemporaryDirectory(prefix="postgres-", ignore_cleanup_errors=True) as name:
        server = postgres.PostgreSQLServer(Path(name))
        # the server reads only a key of its own account
        cert, key = (shutil.copy(each, name) for each in (certificate.cert, certificate.key))
        Path(key).chmod(0o600)
        server.give(Path(cert))
        server.give(Path(key))
        server.start(*("-c", "ssl=on", "-c", f"ssl_cert_file={cert}", "-c", f"ssl_key_file={key}"))
        yield server
        server.stop()


def kept(server: postgres.PostgreSQLServer, host: str, ca: Path) -> Database:
    url = server.url("postgres").reveal().replace("127.0.0.1", host)
    where = SecretURL(f"{url}?sslmode=verify-full&sslrootcert={ca}")
    return Database(where, SCHEMA, name="test", setting="KEYS_DB")


@pytest.mark.postgres
def test_postgresql_with_the_right_authority_is_used(
    encrypted_postgres: postgres.PostgreSQLServer, ca_file: Path
) -> None:
    database = kept(encrypted_postgres, "127.0.0.1", ca_file)
    with database, database.transaction() as connection:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert connection.execute(query).fetchone() == (True,)


@pytest.mark.postgres
@pytest.mark.parametrize("wrong", ["authority", "name", "file"])
def test_postgresql_with_another_certificate_is_refused(
    wrong: str,
    encrypted_postgres: postgres.PostgreSQLServer,
    ca_file: Path,
    foreign_ca: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = "localhost" if wrong == "name" else "127.0.0.1"
    ca = {"authority": foreign_ca, "name": ca_file, "file": Path("/no/such.pem")}[wrong]
    with pytest.raises(ConfigurationError) as caught:
        kept(encrypted_postgres, host, ca).open()
    line = str(caught.value)
    assert line.startswith(f"KEYS_DB=postgresql://{postgres.USER}:***@{host}:")
    assert line.endswith(": its TLS certificate is not accepted: see sslmode and sslrootcert")
    assert "\n" not in line
    assert postgres.PASSWORD not in line + caplog.text


# -- Redis

COUNT = Script("return redis.call('INCR', KEYS[1])")


@pytest.fixture(scope="session")
def encrypted_redis(
    certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """The beginnings of the URLs of a server, of Sentinel and of a cluster, all with TLS."""
    if redis_server.PROGRAM is None:
        pytest.skip("Redis is absent")
    directory = tmp_path_factory.mktemp("redis")
    server = RedisServer(directory, tls=certificate)
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"), tls=certificate)
    port = redis_server.unused_port()
    options = "--tls-port", str(port), "--port", "0", *certificate.options
    sentinel = RedisSentinel(directory, server.tls_port, *options)
    try:
        server.start()
        cluster.start()
        password = redis_server.PASSWORD
        yield {
            "server": f"rediss://:{password}@HOST:{server.tls_port}/0",
            "sentinel": f"rediss+sentinel://:{password}@HOST:{port}/main/0",
            "cluster": f"rediss+cluster://:{password}@HOST:{cluster.nodes[1].tls_port}",
        }
    finally:
        server.stop()
        cluster.stop()
        sentinel.stop()


def counters_of(url: str, host: str, options: str) -> SharedCounters:
    named = SecretURL(url.replace("HOST", host) + options)
    return SharedCounters(named, setting="SHARED_LIMITS", timeout=1)


@pytest.mark.redis
@pytest.mark.parametrize("kind", ["server", "sentinel", "cluster"])
async def test_redis_with_the_right_authority_is_used(
    kind: str, encrypted_redis: dict[str, str], ca_file: Path
) -> None:
    counters = counters_of(encrypted_redis[kind], "127.0.0.1", f"?ssl_ca_certs={ca_file}")
    await counters.open()
    results = [await counters.run(COUNT, [f"{kind}-{number}"]) for number in range(20)]
    await counters.close()
    assert results == [1] * 20


@pytest.mark.redis
@pytest.mark.parametrize("kind", ["server", "cluster"])
@pytest.mark.parametrize("wrong", ["authority", "name", "no authority"])
async def test_redis_with_another_certificate_is_refused(
    kind: str,
    wrong: str,
    encrypted_redis: dict[str, str],
    ca_file: Path,
    foreign_ca: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = "localhost" if wrong == "name" else "127.0.0.1"
    ca = {"authority": f"?ssl_ca_certs={foreign_ca}", "name": f"?ssl_ca_certs={ca_file}"}.get(wrong)
    with pytest.raises(ConfigurationError) as caught:
        await counters_of(encrypted_redis[kind], host, ca or "").open()
    line = str(caught.value)
    assert line.endswith(": TLS fails, or its certificate is not accepted: see ssl_ca_certs")
    assert "\n" not in line
    assert redis_server.PASSWORD not in line + caplog.text
