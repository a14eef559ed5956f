"""Attacks on bearer and refresh tokens of the plugin oidc, each of which fails."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from signing_in import BASE, SIGNING_KEY, SigningIn, claims_of
from tornadoproxy_oidc import sealing, store

from tornadoproxy import Secret


def forged(claims: dict[str, Any], **head: Any) -> str:
    key = OctKey.import_key(b"x" * 32)
    return jwt.encode({"alg": "HS256", **head}, claims, key, algorithms=["HS256"])


async def test_forged_bearer_is_rejected(signing_in: SigningIn) -> None:
    await signing_in.start()
    bearer = (await signing_in.sign_in())["access_token"]
    head, body, signature = bearer.split(".")
    own = json.loads(base64.urlsafe_b64decode(head + "=="))
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    day = int(own["kid"].partition(".")[2])
    fingerprint = own["kid"].partition(".")[0]
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    root = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "root"}).encode()).decode()
    attacks = [
        f"{none}.{body}.",
        f"{head}.{root.rstrip('=')}.{signature}",
        forged(claims, kid=own["kid"]),
        forged(claims),
        forged(claims, kid=f"{fingerprint}.{day + 9}"),
        forged(claims, kid=f"{fingerprint}.{day - 9}"),
        forged(claims, kid=f"../../etc/passwd.{day}"),
        forged(claims, kid=f"{fingerprint}.{day}' OR 1=1"),
        signing_in.provider.token(iss=BASE, sub="root", sid=claims["sid"]),
    ]
    for attack in attacks:
        assert (await signing_in.get(attack)).status == 401
    assert (await signing_in.get(bearer)).status == 200


async def test_bearer_with_an_invalid_claim_is_rejected(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: dict[str, Any] = {}
    await signing_in.start()
    sealer = sealing.Sealer([Secret(SIGNING_KEY)], BASE, 3600)
    given = {"sub": "ada", "groups": [], "sid": "s"}
    assert (await signing_in.get(sealer.bearer(given))).status == 200
    encode = jwt.encode

    def with_changed(head: Any, claims: Any, *rest: Any, **options: Any) -> str:
        return encode(head, {**claims, **changed}, *rest, **options)

    monkeypatch.setattr(jwt, "encode", with_changed)
    assert (await signing_in.get(sealer.bearer(given))).status == 200
    for changed in (
        {"exp": 1_700_000_000},
        {"aud": "other"},
        {"iss": "other"},
        {"sid": None},
        {"sub": None},
    ):
        assert (await signing_in.get(sealer.bearer(given))).status == 401, changed


async def test_clocks_of_replicas_may_differ_by_ten_seconds(
    signing_in: SigningIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bearer that expires this moment there, or was issued this moment."""
    await signing_in.start()
    sealer = sealing.Sealer([Secret(SIGNING_KEY)], BASE, 3600)
    for ahead, status in ((-9, 200), (9, 200), (-40, 401), (40, 401)):
        clock = time.time() + (ahead if ahead > 0 else ahead - 3600)
        with monkeypatch.context() as other:
            other.setattr(time, "time", lambda clock=clock: clock)
            bearer = sealer.bearer({"sub": "ada", "groups": [], "sid": "s"})
        assert (await signing_in.get(bearer)).status == status, ahead


async def test_refresh_token_is_not_made_up(signing_in: SigningIn) -> None:
    """Nor does a token that names a session end it, unless the proxy has issued it."""
    await signing_in.start()
    tokens = await signing_in.sign_in()
    token = tokens["refresh_token"]
    body, _, mac = token.partition(".")
    session_id = claims_of(tokens["access_token"])["sid"]
    assert body.startswith(session_id)
    for attack in (f"{session_id}{'x' * 43}.{mac}", f"{body}.{'0' * 64}", body, f"{body}.", "."):
        assert (await signing_in.refresh(attack)).status == 401
        assert (await signing_in.post("/oauth/revoke", token=attack)).status == 200
    assert (await signing_in.refresh(token)).status == 200


async def test_made_up_refresh_token_does_not_wait_for_the_database(
    signing_in: SigningIn,
) -> None:
    await signing_in.start()
    with store.database(signing_in.where) as database, database.transaction():
        assert (await signing_in.refresh("made-up")).status == 401


async def test_nothing_secret_is_stored_or_logged(
    signing_in: SigningIn, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    await signing_in.start()
    tokens = await signing_in.sign_in()
    await signing_in.refresh(tokens["refresh_token"])
    with store.database(signing_in.where).reading() as connection:
        stored = ""
        for table in ("oidc_grant", "oidc_session", "oidc_refresh"):
            stored += str(connection.execute(f"SELECT * FROM {table}").fetchall())
    seen = stored + caplog.text + "".join(capsys.readouterr())
    for secret in (tokens["access_token"], tokens["refresh_token"], "refresh-0", "code-0"):
        assert secret not in seen
