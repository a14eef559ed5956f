"""The people and groups that the plugins know, as users and RBAC groups. They can only be read.

Sources: https://platform.claude.com/docs/en/api/admin/users and ``…/rbac_groups``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tornadoproxy import Denied, admin

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

ROLE = "user"
"""The role of everyone: there are no other ones here."""

_ROLES = (
    *("admin", "billing", "claude_code_user", "developer", "managed", "membership_admin"),
    *("owner", "primary_owner", ROLE),
)


class People:
    """The resources ``users`` and ``rbac_groups``.

    :param apis: whose people they show.
    """

    def __init__(self, apis: Sequence[admin.Api]) -> None:
        self._sources = [api.people for api in apis if api.people is not None]

    def resources(self) -> tuple[admin.Resource, ...]:
        """Return the resources; none if no plugin knows people."""
        if not self._sources:
            return ()
        resource = admin.Resource
        return (
            resource("users", {"GET": self._users}),
            resource("users/([^/]+)", {"GET": self._user}),
            resource("rbac_groups", {"GET": self._groups}),
            resource("rbac_groups/([^/]+)", {"GET": self._group}),
            resource("rbac_groups/([^/]+)/members", {"GET": self._members}),
        )

    async def _users(self, request: admin.Request) -> admin.Document:
        query = request.query
        email, roles = query.value("email"), query.values("roles", _ROLES)
        people = await self._people()
        names = [
            name
            for name in people
            if email in (None, _email(name)) and (not roles or ROLE in roles)
        ]
        return _listed(query, names, lambda name: _user(people[name]))

    async def _user(self, request: admin.Request) -> admin.Document:
        return _user(_existing(await self._people(), request, "user"))

    async def _groups(self, request: admin.Request) -> admin.Document:
        groups = _by_group(await self._people())
        return _listed(request.query, list(groups), lambda name: _group(name, groups[name]))

    async def _group(self, request: admin.Request) -> admin.Document:
        members = _existing(_by_group(await self._people()), request, "group")
        return _group(request.arguments[0], members)

    async def _members(self, request: admin.Request) -> admin.Document:
        members = _existing(_by_group(await self._people()), request, "group")
        by_name = {person.name: person for person in members}
        group = request.arguments[0]
        return _listed(
            request.query,
            list(by_name),
            lambda name: {
                "type": "rbac_group_member",
                "id": name,
                "rbac_group_id": group,
                "user_id": name,
                "email": _email(name),
                "created_at": admin.timestamp(by_name[name].since),
            },
        )

    async def _people(self) -> Mapping[str, admin.Person]:
        """Return each person once, by name."""
        found: dict[str, admin.Person] = {}
        for source in self._sources:
            for person in await source():
                known = found.get(person.name, person)
                found[person.name] = admin.Person(
                    person.name,
                    tuple(sorted({*known.groups, *person.groups})),
                    min(known.since, person.since),
                )
        return dict(sorted(found.items()))


def _by_group(people: Mapping[str, admin.Person]) -> Mapping[str, Sequence[admin.Person]]:
    groups: dict[str, list[admin.Person]] = {}
    for person in people.values():
        for group in person.groups:
            groups.setdefault(group, []).append(person)
    return dict(sorted(groups.items()))


def _listed(
    query: admin.Query, ids: Sequence[str], document: Callable[[str], admin.Document]
) -> admin.Document:
    shown, has_more = query.shown(ids)
    return admin.list_document(
        [document(each) for each in shown],
        has_more=has_more,
        next_page=admin.cursor(shown[-1]) if has_more else None,
    )


def _user(person: admin.Person) -> admin.Document:
    return {
        "type": "user",
        "id": person.name,
        "name": person.name,
        "email": _email(person.name),
        "role": ROLE,
        "added_at": admin.timestamp(person.since),
        "groups": list(person.groups),
    }


def _group(name: str, members: Sequence[admin.Person]) -> admin.Document:
    since = admin.timestamp(min(person.since for person in members))
    return {
        "type": "rbac_group",
        "id": name,
        "name": name,
        "source_type": "direct",
        "role_ids": [],
        "created_at": since,
        "updated_at": since,
    }


def _email(name: str) -> str:
    return name if "@" in name else ""


def _existing(found: Mapping[str, T], request: admin.Request, what: str) -> T:
    (name,) = request.arguments
    if name not in found:
        raise Denied(f"There is no {what} with this id.", status=404)
    return found[name]
