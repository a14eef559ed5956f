"""Upstreams of ``UPSTREAMS_FILE`` on AWS: their keys, and what follows from the environment.

A credential is, in this order: the entry's API key, its access key, its profile, an API key of the
environment, or what botocore's chain finds. That is the order of the package anthropic.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from botocore.exceptions import NoCredentialsError, ProfileNotFound
from botocore.session import Session

from tornadoproxy import BaseURL, RefreshedCredential, Secret, parsers
from tornadoproxy_aws.bedrock import UNSUPPORTED, BedrockWire
from tornadoproxy_aws.native import MantleWire, PlatformWire
from tornadoproxy_aws.signing import Signer

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

    from tornadoproxy import Upstream, UpstreamEntries, UpstreamEntry
    from tornadoproxy_aws.wire import AWSWire

_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_WORKSPACE_VARIABLE = "ANTHROPIC_AWS_WORKSPACE_ID"
_NOWHERE = "us-east-1"
_ACCESS_KEY = ("access_key_id", "secret_access_key", "session_token")


class _Kind(NamedTuple):
    """How the upstreams of one kind are reached.

    :ivar host: with the region's name to be put in.
    :ivar service: the service's name in signatures.
    :ivar key_variables: the environment variables of an API key.
    """

    host: str
    prefix: str
    service: str
    key_variables: tuple[str, ...]
    auth_scheme: str


_KINDS = {
    "bedrock": _Kind(
        "bedrock-runtime.{}.amazonaws.com", "", "bedrock", ("AWS_BEARER_TOKEN_BEDROCK",), "bearer"
    ),
    "mantle": _Kind(
        "bedrock-mantle.{}.api.aws",
        "/anthropic",
        "bedrock-mantle",
        ("AWS_BEARER_TOKEN_BEDROCK", "ANTHROPIC_AWS_API_KEY"),
        "bearer",
    ),
    "aws": _Kind(
        "aws-external-anthropic.{}.api.aws",
        "",
        "aws-external-anthropic",
        ("ANTHROPIC_AWS_API_KEY",),
        "x-api-key",
    ),
}


class _Account(NamedTuple):
    """What an entry says about whom requests are from."""

    api_key: Secret | None
    source: str | None
    profile: str | None
    access_key: tuple[str, str, str | None] | None

    def session(self) -> Session:
        """Return a botocore session of this account."""
        session = Session(profile=self.profile)
        if self.access_key is not None:
            session.set_credentials(*self.access_key)
        return session

    def load(self) -> tuple[ReadOnlyCredentials, float | None]:
        """Return its credentials by botocore's chain, and when they end; it blocks.

        :raises Exception: of many kinds; there are none, or their source fails.
        """
        found = self.session().get_credentials()
        if found is None:
            raise NoCredentialsError
        credentials = found.get_frozen_credentials()
        # no public method tells it; `aws configure export-credentials` reads it as well
        ends = getattr(found, "_expiry_time", None)
        return credentials, None if ends is None else ends.timestamp()


def upstream_of(entry: UpstreamEntry, entries: UpstreamEntries) -> Upstream:
    """Return the upstream that an entry describes; what is wrong becomes a fault of the file."""
    kind = _KINDS[entry.kind]
    account = _account(entry, entries, kind)
    region = _region(entry, entries, account)
    default = BaseURL("https", kind.host.format(region), 443, kind.prefix)
    base_url: BaseURL = entry.read("base_url", parsers.base_url, default)
    signer, source = None, account.source
    if account.api_key is None:
        source = f"the AWS credentials of the upstream {entry.name!r}"
        credentials = RefreshedCredential(source, account.load)
        signer = Signer(base_url, kind.service, region, credentials)
    return entry.upstream(
        wire=_wire(entry, entries, signer),
        base_url=base_url,
        api_key=account.api_key,
        key_source=source,
        auth_scheme=kind.auth_scheme,
    )


def _wire(entry: UpstreamEntry, entries: UpstreamEntries, signer: Signer | None) -> AWSWire:
    if entry.kind == "mantle":
        return MantleWire(signer)
    if entry.kind == "bedrock":
        version = entry.read("anthropic_version", parsers.text)
        return BedrockWire(signer, UNSUPPORTED.for_entry(entry), version)
    workspace = entry.read("workspace_id", _id) or entries.environment(_WORKSPACE_VARIABLE)
    if not workspace:
        entry.fault("workspace_id", f"is missing: set it, or {_WORKSPACE_VARIABLE}")
    return PlatformWire(signer, workspace or "")


def _account(entry: UpstreamEntry, entries: UpstreamEntries, kind: _Kind) -> _Account:
    api_key, source = entry.secret("api_key")
    profile = entry.read("profile", _profile)
    access_key = _access_key(entry)
    given = [
        name
        for name, value in (
            ("api_key", source),
            ("access_key_id", access_key),
            ("profile", profile),
        )
        if value is not None
    ]
    if len(given) > 1:
        entry.fault(given[1], f"and {given[0]} are both set: keep one of them")
    if not given:
        for variable in kind.key_variables:
            text = entries.environment(variable)
            if text:
                return _Account(_secret(entry, variable, text), variable, None, None)
    return _Account(api_key, source, profile, access_key)


def _access_key(entry: UpstreamEntry) -> tuple[str, str, str | None] | None:
    key_id = entry.read("access_key_id", _id)
    key, key_source = entry.secret("secret_access_key")
    token, token_source = entry.secret("session_token")
    if key_id is None and key_source is None and token_source is None:
        return None
    if key_id is None or key_source is None:
        missing = "secret_access_key" if key_source is None else "access_key_id"
        entry.fault(missing, f"is missing: {_ACCESS_KEY[0]} and {_ACCESS_KEY[1]} go together")
    if key_id is None or key is None:
        return None
    return key_id, _text(key), None if token is None else _text(token)


def _region(entry: UpstreamEntry, entries: UpstreamEntries, account: _Account) -> str:
    """Return the entry's region, or that of the environment or the profile."""
    given: str | None = entry.read("region", _region_name)
    if given is not None or "region" in entry.table:
        return given or _NOWHERE
    named = [text for each in _REGION_VARIABLES if (text := entries.environment(each))]
    region = named[0] if named else _region_of_profile(entry, account)
    if not region:
        entry.fault("region", f"is missing: set it, or {_REGION_VARIABLES[0]}")
        return _NOWHERE
    try:
        return _region_name(region)
    except ValueError as error:
        entry.fault("region", f"is not set, and that of the environment {error}")
        return _NOWHERE


def _region_of_profile(entry: UpstreamEntry, account: _Account) -> str | None:
    try:
        region: str | None = account.session().get_config_variable("region")
    except ProfileNotFound:  # the one that AWS_PROFILE names
        return None
    return region


def _secret(entry: UpstreamEntry, variable: str, text: str) -> Secret | None:
    try:
        return parsers.secret(text)
    except ValueError as error:
        entry.fault("kind", f"{entry.kind!r} takes its API key from {variable}, which {error}")
        return None


def _profile(value: str) -> str:
    if value not in Session().available_profiles:
        raise ValueError(f"is not a profile of the AWS configuration files: {value!r}")
    return value


def _region_name(value: str) -> str:
    return _matching(r"[a-z0-9-]{1,63}", value, "the name of a region, such as us-east-1")


def _id(value: str) -> str:
    return _matching(r"[A-Za-z0-9_-]{1,128}", value, "an id of letters, digits, _ and -")


def _matching(pattern: str, value: str, form: str) -> str:
    if not re.fullmatch(pattern, value):
        raise ValueError(f"must be {form}")
    return value


def _text(secret: Secret) -> str:
    return secret.reveal().decode("latin-1")
