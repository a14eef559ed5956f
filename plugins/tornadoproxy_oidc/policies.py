"""The policies of groups, from the file ``OIDC_POLICY_FILE``. In memory, without I/O afterwards.

The first policy with one of a person's groups applies; one without ``groups`` is for everybody. The
settings for Claude Code have the checksum that Claude Code itself computes: the SHA-256 of compact
JSON with sorted keys.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy import AllowedModels, Denied

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

MAX_SETTINGS = 1024 * 1024  # bytes of a file

_FIELDS = ("groups", "settings", "models", "denied")


@dataclass(frozen=True, slots=True)
class ManagedSettings:
    """Claude Code's settings for a group.

    :param etag: the quoted checksum.
    :param body: the response.
    """

    etag: str
    body: bytes

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ManagedSettings:  # Any: JSON
        """Return the response for these settings."""
        compact = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        checksum = f"sha256:{hashlib.sha256(compact.encode()).hexdigest()}"
        response = {
            "uuid": str(uuid.uuid5(uuid.NAMESPACE_URL, checksum)),
            "checksum": checksum,
            "settings": settings,
        }
        return cls(f'"{checksum}"', json.dumps(response).encode())


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for some groups.

    :param groups: ``None`` is everybody.
    :param settings: for Claude Code; ``None`` if there are none.
    :param models: those that may be used; ``None`` is all.
    :param denied: the message for people who may not use the proxy; ``None`` if they may.
    """

    groups: frozenset[str] | None = None
    settings: ManagedSettings | None = None
    models: AllowedModels | None = None
    denied: str | None = None


class Policies:
    """The policies of a file, in its order.

    :raises ValueError: the document is wrong; the message ends a sentence.
    """

    def __init__(self, document: Mapping[str, Any], directory: Path) -> None:
        _known(document, ("policy",), "the file")
        given = _of(list, document.get("policy", []), "policy", "list of tables: [[policy]]")
        self._policies = [
            _policy(_of(dict, each, f"policy {number}", "table"), f"policy {number}", directory)
            for number, each in enumerate(given, 1)
        ]

    def of(self, groups: Iterable[str]) -> Policy:
        """Return the policy of a person; an empty one if none applies."""
        for policy in self._policies:
            if policy.groups is None or not policy.groups.isdisjoint(groups):
                return policy
        return _NONE

    def check(self, groups: Iterable[str]) -> None:
        """Refuse a person whose groups are denied.

        :raises Denied: 403.
        """
        if (text := self.of(groups).denied) is not None:
            raise Denied(text)


_NONE = Policy()


def _policy(given: Mapping[str, Any], where: str, directory: Path) -> Policy:
    _known(given, _FIELDS, where)
    groups = _names(given, "groups", where)
    models = _names(given, "models", where)
    denied = given.get("denied")
    if denied is not None:
        denied = _of(str, denied, f"{where}: denied", "text that says why")
    return Policy(
        groups=None if groups is None else frozenset(groups),
        settings=_settings(given.get("settings"), f"{where}: settings", directory),
        models=None if models is None else AllowedModels(tuple(models), "Your group may use"),
        denied=denied,
    )


def _settings(given: object, where: str, directory: Path) -> ManagedSettings | None:
    if given is None:
        return None
    if isinstance(given, str):
        given = _read(directory / given, where)
    table = _of(dict, given, where, "table, or the path of a JSON or TOML file")
    try:
        return ManagedSettings.of(table)
    except (TypeError, ValueError):
        raise ValueError(f"{where} has a value that JSON does not have, such as a date") from None


def _read(path: Path, where: str) -> object:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SETTINGS + 1)
        if len(content) > MAX_SETTINGS:
            raise ValueError("it is larger than 1 MiB")  # noqa: TRY301  # as one that is not valid
        text = content.decode()
        found: object = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ValueError(f"{where}: '{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: '{path}' is not valid: {error}") from None
    return found


def _names(given: Mapping[str, Any], field: str, where: str) -> Sequence[str] | None:
    if field not in given:
        return None
    found = _of(list, given[field], f"{where}: {field}", "list of names")
    if not found or not all(isinstance(name, str) and name for name in found):
        raise ValueError(f"{where}: {field} must be a list of at least one name")
    return found


def _known(given: Mapping[str, Any], fields: Sequence[str], where: str) -> None:
    if unknown := sorted(given.keys() - set(fields)):
        raise ValueError(f"{where} has the unknown field {unknown[0]}; known: {', '.join(fields)}")


def _of(kind: type[T], value: object, where: str, wanted: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{where} must be a {wanted}")  # noqa: TRY004  # as the other faults
    return value
