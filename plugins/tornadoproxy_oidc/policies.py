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
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy import Allowance, AllowedModels, Denied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T")

MAX_SETTINGS = 1024 * 1024  # bytes of a file
MAX_CENTS = 10**12
MAX_LIMIT = 10**12
ROUNDING = 1e-4  # cents that a float may be away from a whole number of them

_FIELDS = ("groups", "settings", "models", "denied", "caps", "limits")
_CAPS = ("daily", "weekly", "monthly")
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")


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
        compact = json.dumps(
            settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
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
    :param allowances: the limits and caps of each person, by the group in the order of the file;
        by ``None`` for everybody; empty if there are none.
    """

    groups: frozenset[str] | None = None
    settings: ManagedSettings | None = None
    models: AllowedModels | None = None
    denied: str | None = None
    allowances: Mapping[str | None, Allowance] = field(default_factory=dict)

    def allowance(self, groups: Iterable[str]) -> Allowance | None:
        """Return the limits and caps of a person to whom this policy applies, if there are any."""
        for group, allowance in self.allowances.items():
            if group is None or group in groups:
                return allowance
        return None


class Policies:
    """The policies of a file, in its order.

    :ivar limited: the first policy with limits, in words; ``None`` if there is none.
    :ivar capped: likewise the first with caps.
    :raises ValueError: the document is wrong; the message ends a sentence.
    """

    def __init__(self, document: Mapping[str, Any], directory: Path) -> None:
        _known(document, ("policy",), "the file")
        given = _of(list, document.get("policy", []), "policy", "list of tables: [[policy]]")
        self._policies = [
            _policy(_of(dict, each, f"policy {number}", "table"), f"policy {number}", directory)
            for number, each in enumerate(given, 1)
        ]
        for number, policy in enumerate(self._policies[:-1], 1):
            if policy.groups is None:
                raise ValueError(
                    f"policy {number + 1} never applies, because policy {number} has no groups and "
                    "is for everybody: move that one to the end"
                )
        self.limited = _first(given, "limits")
        self.capped = _first(given, "caps")

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


def _first(given: Sequence[Mapping[str, Any]], name: str) -> str | None:
    return next((f"policy {number}" for number, each in enumerate(given, 1) if name in each), None)


def _policy(given: Mapping[str, Any], where: str, directory: Path) -> Policy:
    _known(given, _FIELDS, where)
    groups = _names(given, "groups", where)
    models = _names(given, "models", where)
    denied = given.get("denied")
    if denied is not None:
        denied = _of(str, denied, f"{where}: denied", "text that says why")
        if not denied.strip():
            raise ValueError(f"{where}: denied must not be empty")
    return Policy(
        groups=None if groups is None else frozenset(groups),
        settings=_settings(given.get("settings"), f"{where}: settings", directory),
        models=None if models is None else AllowedModels(tuple(models), "Your group may use"),
        denied=denied,
        allowances=_allowances(given, groups, where),
    )


def _allowances(
    given: Mapping[str, Any], groups: Sequence[str] | None, where: str
) -> dict[str | None, Allowance]:
    found = {
        **_numbers(given, "caps", _CAPS, _cents, where),
        **_numbers(given, "limits", _LIMITS, _limit, where),
    }
    return {group: Allowance(**found, group=group) for group in groups or (None,)} if found else {}


def _numbers(
    given: Mapping[str, Any],
    name: str,
    known: Sequence[str],
    read: Callable[[object, str], int],
    where: str,
) -> dict[str, int]:
    """Return the numbers of a table, which has at least one; empty if there is no such table."""
    if name not in given:
        return {}
    where = f"{where}: {name}"
    table = _of(dict, given[name], where, f"table with {', '.join(known)}")
    _known(table, known, where)
    if not table:
        raise ValueError(f"{where} must have at least one of {', '.join(known)}")
    return {each: read(value, f"{where}: {each}") for each, value in table.items()}


def _cents(value: object, where: str) -> int:
    cents = value * 100 if type(value) is int or type(value) is float else -1
    if not 0 <= cents <= MAX_CENTS or abs(cents - round(cents)) > ROUNDING:
        raise ValueError(f"{where} must be an amount in US dollars, such as 20 or 12.50")
    return round(cents)


def _limit(value: object, where: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_LIMIT:
        raise ValueError(f"{where} must be a whole number from 1 to {MAX_LIMIT}")
    return value


def _settings(given: object, where: str, directory: Path) -> ManagedSettings | None:
    if given is None:
        return None
    if isinstance(given, str):
        given = _read(directory / given, where)
    table = _of(dict, given, where, "table, or the path of a JSON or TOML file")
    try:
        return ManagedSettings.of(table)
    except (TypeError, ValueError):
        raise ValueError(
            f"{where} has a value that JSON does not have, such as a date or nan"
        ) from None


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


def _names(given: Mapping[str, Any], name: str, where: str) -> Sequence[str] | None:
    if name not in given:
        return None
    found = _of(list, given[name], f"{where}: {name}", "list of names")
    if not found or not all(isinstance(each, str) and each for each in found):
        raise ValueError(f"{where}: {name} must be a list of at least one name")
    return found


def _known(given: Mapping[str, Any], fields: Sequence[str], where: str) -> None:
    if unknown := sorted(given.keys() - set(fields)):
        raise ValueError(f"{where} has the unknown field {unknown[0]}; known: {', '.join(fields)}")


def _of(kind: type[T], value: object, where: str, wanted: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{where} must be a {wanted}")  # noqa: TRY004  # as the other faults
    return value
