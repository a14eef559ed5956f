"""The resource ``recordings`` of the Admin API: what was recorded of one request.

It holds prompts, so that a key which may only read reports does not get it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tornadoproxy import Denied, admin
from tornadoproxy_recorder import files

if TYPE_CHECKING:
    from pathlib import Path


class RecordingsApi:
    """The resource that shows recordings.

    :param directory: of the recorder.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def api(self) -> admin.Api:
        """Return the plugin's part of the Admin API."""
        return admin.Api("recorder", (admin.Resource("recordings/([^/]+)", {"GET": self._get}),))

    async def _get(self, request: admin.Request) -> admin.Document:
        if not request.may_change:
            raise Denied(
                "Recordings hold prompts: use a key of ADMIN_KEY, not one that may only read."
            )
        (id_,) = request.arguments
        exchange = await asyncio.to_thread(_read, self._directory, id_)
        if exchange is None:
            raise Denied("There is no recording of a request with this id.", status=404)
        return {"type": "recording", "id": id_, **exchange}


def _read(directory: Path, id_: str) -> files.Document | None:
    """Return the exchange with an id; ``None`` if there is none that can be read."""
    for path in files.find(directory, id_):
        try:
            exchange = files.read(path)
        except (OSError, ValueError):  # deleted meanwhile, or damaged
            continue
        if exchange["record"]["request_id"] == id_:
            return exchange
    return None
