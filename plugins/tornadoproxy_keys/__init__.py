"""A credential for each person, with limits of its own: the keys that ``KEYS_DB`` holds.

``python -m tornadoproxy keys create --name ada`` makes one, and shows it once. Whoever presents it
enters as the principal ``ada``, beside whoever the other authenticators let in: what does not
begin with ``tp-`` is theirs to judge. What is made, revoked or rotated on the command line takes
effect in running proxies within two seconds.

With ``KEYS_DB`` set, nobody enters without a credential. The token plugin lets in nobody then but
those who have a token; and in `admit` this one refuses every identity that is anonymous,
whoever vouched for it. So this holds on any HOST, with whatever other authenticator is installed.

A key's limits of requests and tokens are asked in `admit`, before the body is read; its models in
`authorize`.

- `tornadoproxy_keys.gate`: who enters, in a running proxy
- `tornadoproxy_keys.live_key`: one key's limits
- `tornadoproxy_keys.model_rules`: the models that a key may use
- `tornadoproxy_keys.usage_count`: what each key has used, until it is written
- `tornadoproxy_keys.store`: the tables
- `tornadoproxy_keys.command`: ``keys create``, ``list``, ``revoke``, ``rotate``, ``usage``
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tornadoproxy import (
    INACTIVE,
    Command,
    ConfigurationError,
    Identity,
    Inactive,
    IncomingRequest,
    ModelRequest,
    Permit,
    Setting,
    Settings,
    hookimpl,
    parsers,
)

if TYPE_CHECKING:
    import argparse

    from tornadoproxy_keys.gate import Gate


KEYS_DB: Setting[Path | None] = Setting(
    "KEYS_DB",
    parsers.path,
    default=None,
    help=(
        "The SQLite file that holds the keys of `keys create`; it is made if it is not there. With "
        "it, nobody enters without a credential."
    ),
)


class Keys:
    """Lets in whoever has a key, within its limits."""

    def __init__(self) -> None:
        self._gate: Gate | None = None

    @hookimpl
    def declare_settings(self) -> tuple[Setting[Path | None]]:
        return (KEYS_DB,)

    @hookimpl
    def commands(self) -> tuple[Command]:
        return (
            Command(
                "keys",
                "create, list, revoke and rotate the keys of KEYS_DB, and show their usage",
                _add_arguments,
                _run,
            ),
        )

    @hookimpl
    def configure(self, settings: Settings) -> str | Inactive:
        """Take the path.

        :raises ConfigurationError: it cannot be right, or differs from the one that is open.
        """
        path = settings[KEYS_DB]
        if path is None:
            return INACTIVE
        if self._gate is None:
            from tornadoproxy_keys.gate import Gate

            gate = Gate(path)
            gate.check()
            self._gate = gate
        elif path != self._gate.path:
            raise ConfigurationError("KEYS_DB has changed, and is open: start the proxy again.")
        self._gate.has_token = _has_token(settings)
        if not self._gate.has_keys():
            create = f"{sys.executable} -m tornadoproxy keys create --name ada --keys-db"
            where = shlex.quote(str(path.absolute()))
            return f"nobody yet, as there is no key in {path}: make one with `{create} {where}`"
        return f"whoever has a key in {path}"

    @hookimpl
    async def startup(self) -> None:
        await self._opened().open()

    @hookimpl
    async def shutdown(self) -> None:
        await self._opened().close()

    @hookimpl
    def authenticate(self, request: IncomingRequest) -> Identity | None:
        return self._opened().authenticate(request)

    # before those whose answer costs more
    @hookimpl(tryfirst=True)
    def admit(self, request: IncomingRequest, identity: Identity) -> Permit | None:
        return self._opened().admit(request, identity)

    @hookimpl(tryfirst=True)
    def authorize(
        self, request: IncomingRequest, identity: Identity, model_request: ModelRequest | None
    ) -> Permit | None:
        return self._opened().authorize(request, identity, model_request)

    def _opened(self) -> Gate:
        assert self._gate is not None, "configure comes first, and answered that this is active"
        return self._gate


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    from tornadoproxy_keys import command

    command.add_arguments(parser)


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from tornadoproxy_keys import command

    return command.run(arguments, settings[KEYS_DB], has_token=_has_token(settings))


def _has_token(settings: Settings) -> bool:
    return settings.is_set("AUTH_TOKEN") or settings.is_set("AUTH_TOKEN_FILE")
