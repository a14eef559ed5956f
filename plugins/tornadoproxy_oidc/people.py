"""The identity that follows from the claims of a token. Without I/O."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

from tornadoproxy import Denied, Identity

if TYPE_CHECKING:
    from tornadoproxy_oidc.policies import Policies

MAX_NAME = 200
"""The longest name, e-mail address or group, in characters."""


class Person(Identity, frozen=True):
    """A person or workload that the provider has authenticated.

    :param email: the e-mail address; ``None`` if the provider sends none.
    :param full_name: the claim ``name``, to be shown.
    """

    email: str | None = None
    full_name: str | None = None


class InvalidClaims(Exception):
    """The claims of a valid token do not say who its holder is; the text says why."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Which claims say what, and who is accepted.

    :param name: the claim that is the principal.
    :param email: the claim with the e-mail address.
    :param groups: the claim that lists the groups.
    :param domains: those that an e-mail address must have; without any, it is optional.
    :param policies: those of groups, which may deny.
    :param admins: the groups whose people may use the Admin API.
    :param admin_readers: the groups whose people may read it.
    """

    name: str
    email: str
    groups: str
    domains: Sequence[str]
    policies: Policies
    admins: frozenset[str] = frozenset()
    admin_readers: frozenset[str] = frozenset()

    def person(self, claims: Mapping[str, Any]) -> Person:  # Any: a claim may be any JSON
        """Return the person of these claims.

        :raises InvalidClaims: a claim is missing or malformed.
        :raises Denied: 403, the e-mail address has another domain or is not verified, or a policy
            denies one of the groups.
        """
        email = claims.get(self.email)
        if email is not None and not _is_text(email):
            raise InvalidClaims(f"its claim {self.email} is not text")
        if self.domains or self.name == self.email:
            self._check_email(claims, email)
        groups = claims.get(self.groups, [])
        if self.groups not in claims and self.groups in _named_elsewhere(claims):
            raise InvalidClaims(
                f"its claim {self.groups} is left out, as for a person of very many groups: let "
                "the provider list only the groups that are assigned to this application"
            )
        if not isinstance(groups, list) or not all(map(_is_text, groups)):
            raise InvalidClaims(f"its claim {self.groups} is not a list of names")
        self.policies.check(groups)
        return Person(
            self._principal(claims),
            groups=tuple(groups),
            admin_access=self.admin_access(groups),
            email=email,
            full_name=_shown(claims),
        )

    def check_again(self, document: Mapping[str, Any]) -> None:
        """Refuse a person who was accepted earlier, and whom the settings no longer accept.

        :param document: see `document_of`.
        :raises Denied: 403.
        """
        self._check_domain(document.get("email", ""))
        self.policies.check(document["groups"])

    def admin_access(self, groups: Iterable[str]) -> Literal["write", "read"] | None:
        """Return what a person of these groups may do in the Admin API."""
        if not self.admins.isdisjoint(groups):
            return "write"
        return None if self.admin_readers.isdisjoint(groups) else "read"

    def workload(self, claims: Mapping[str, Any], group: str) -> Person:
        """Return the workload of these claims, whose only group is `group`.

        :raises InvalidClaims: there is no name.
        :raises Denied: 403, a policy denies the group.
        """
        self.policies.check((group,))
        return Person(_valid_name(claims.get("sub"), "sub"), groups=(group,))

    def _principal(self, claims: Mapping[str, Any]) -> str:
        return _valid_name(claims.get(self.name), self.name)

    def _check_email(self, claims: Mapping[str, Any], email: str | None) -> None:
        if email is None:
            raise InvalidClaims(f"it has no claim {self.email}")
        # some providers send it as text
        if claims.get("email_verified") not in (None, True, "true"):
            raise Denied("Your e-mail address is not verified: verify it, and sign in again.")
        self._check_domain(email)

    def _check_domain(self, email: str) -> None:
        if self.domains and email.rpartition("@")[2].lower() not in self.domains:
            raise Denied("Your e-mail address is of a domain that is not accepted here.")


def _named_elsewhere(claims: Mapping[str, Any]) -> Container[str]:
    """Return the claims for which a provider refers to another place (OIDC Core §5.6.2).

    Without its groups a person would escape the policies that apply to them.
    """
    names = claims.get("_claim_names")
    return names if isinstance(names, dict) else ()


def _valid_name(name: object, claim: str) -> str:
    if not _is_text(name):
        raise InvalidClaims(f"its claim {claim} is not a name")
    # the clients with AUTH_TOKEN have these names, whose responses nobody else may read
    if re.fullmatch(r"token(-[0-9]+)?|anonymous", name):
        raise InvalidClaims(f"its claim {claim} is a name that this proxy uses itself")
    return name


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _shown(claims: Mapping[str, Any]) -> str | None:
    name = claims.get("name")
    return name if _is_text(name) else None


def document_of(person: Person, subject: str) -> dict[str, Any]:
    """Return a person as JSON, with the claims of a bearer.

    :param subject: the provider's ``sub``, which stays the same.
    """
    document = {
        "sub": person.principal,
        "groups": list(person.groups),
        "email": person.email,
        "name": person.full_name,
        "provider_sub": subject,
    }
    return {name: value for name, value in document.items() if value is not None}


def person_of(document: Mapping[str, Any], claims: Claims) -> Person:
    """Return the person of a document that `document_of` made."""
    groups = tuple(document["groups"])
    return Person(
        document["sub"],
        groups=groups,
        admin_access=claims.admin_access(groups),
        email=document.get("email"),
        full_name=document.get("name"),
    )
