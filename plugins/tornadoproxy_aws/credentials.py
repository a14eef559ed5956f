"""AWS credentials by botocore's own chain: loaded and refreshed in a thread, once at a time.

Sources are those of every AWS program: environment, shared files and profiles, assumed roles, web
identity, SSO, containers and instance metadata. Most of them block, so that the event loop only
reads what a thread has loaded. Temporary credentials are refreshed before they end, while requests
are signed with the present ones.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from tornadoproxy import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.credentials import Credentials, ReadOnlyCredentials
    from botocore.session import Session

logger = logging.getLogger(__name__)

LOAD_INTERVAL = 30.0
"""How long after one refresh, or after one that failed, the next may be tried, in seconds."""

RENEWAL_INTERVAL = 60.0
"""How long what a renewal found holds, in seconds: a 403 is often not about the credentials."""


class AWSCredentials:
    """The credentials of one upstream.

    :param upstream: its name, for the log.
    :param new_session: returns a botocore session, whose chain is asked for credentials.
    """

    def __init__(self, upstream: str, new_session: Callable[[], Session]) -> None:
        self._upstream = upstream
        self._new_session = new_session
        self._source: Credentials | None = None
        self._present: ReadOnlyCredentials | None = None
        self._loading: asyncio.Task[None] | None = None
        self._next_refresh = 0.0
        self._renewal: asyncio.Task[bool] | None = None
        self._renewed_at = 0.0

    @property
    def present(self) -> ReadOnlyCredentials | None:
        """The credentials that can be used without waiting; ``None`` if there are none.

        If they end soon, a refresh begins.
        """
        if self._source is None or not _ends_within(self._source, None):
            return self._present
        if time.monotonic() >= self._next_refresh:
            self._begin_loading()
        return None if _ends_within(self._source, 0) else self._present

    async def load(self) -> ReadOnlyCredentials:
        """Return the credentials, once they are loaded.

        :raises UpstreamError: there are none, or they cannot be loaded at present.
        """
        if self.present is None:
            await asyncio.shield(self._begin_loading())
        present = self.present
        if present is None:
            raise UpstreamError("This proxy has no valid AWS credentials for the upstream.")
        return present

    async def renew(self) -> bool:
        """Ask the chain anew, from its beginning; return whether it has other credentials now."""
        renewal, now = self._renewal, time.monotonic()
        if renewal is None or (renewal.done() and now - self._renewed_at > RENEWAL_INTERVAL):
            self._renewed_at = now
            self._renewal = renewal = asyncio.create_task(self._renew())
        return await asyncio.shield(renewal)

    async def _renew(self) -> bool:
        if self._loading is not None:
            await self._loading
        before, source = self._present, self._source
        self._source = None
        await self._begin_loading()
        if self._source is None:
            self._source = source
        return self._present is not None and self._present != before

    def _begin_loading(self) -> asyncio.Task[None]:
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        return self._loading

    async def _load(self) -> None:
        try:
            self._source, self._present = await asyncio.to_thread(self._ask, self._source)
        except Exception as error:
            # its text may quote what a credential process has printed
            logger.error(  # noqa: TRY400  # the traceback would show that text
                "upstream %s: its AWS credentials cannot be loaded (%s); "
                "`aws sts get-caller-identity` shows why",
                self._upstream,
                type(error).__name__,
            )
        finally:
            self._loading = None
            self._next_refresh = time.monotonic() + LOAD_INTERVAL

    def _ask(self, source: Credentials | None) -> tuple[Credentials, ReadOnlyCredentials]:
        """Return where credentials come from, and these; it blocks."""
        from botocore.exceptions import NoCredentialsError

        source = source or self._new_session().get_credentials()
        if source is None:
            raise NoCredentialsError
        return source, source.get_frozen_credentials()


def _ends_within(source: Credentials, seconds: int | None) -> bool:
    """Whether credentials end within `seconds`; ``None`` stands for botocore's own margin."""
    refresh_needed = getattr(source, "refresh_needed", None)  # lasting credentials have none
    return refresh_needed is not None and bool(refresh_needed(seconds))
