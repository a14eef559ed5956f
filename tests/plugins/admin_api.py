"""A proxy with an Admin API, for the tests of the plugins that have resources in it."""

from __future__ import annotations

import json
from typing import Any

from budget_team import ADMIN
from people import Served

from tornadoproxy.testing import Proxy, RawResponse

ORGANIZATION = "/v1/organizations"


class AdminApi(Served):
    """A proxy with an Admin API, and its clients.

    :ivar path: the resource that requests are for, unless they name another.
    :ivar settings: those of the proxy.
    """

    def __init__(self, scene: Any, where: Any, path: str = "", **settings: Any) -> None:
        super().__init__(scene, where)
        self.resource = path
        self.settings = {"ADMIN_KEY": f"ops={ADMIN}", **settings}

    async def start(self, **variables: Any) -> Proxy:
        return await self.start_proxy(**{**self.settings, **variables})

    async def send(
        self,
        method: str = "GET",
        path: str | None = None,
        document: object = None,
        *,
        key: str | None = ADMIN,
        **headers: str,
    ) -> RawResponse:
        """Send a request; the headers are named as in Python."""
        response = await self.request(
            ORGANIZATION + (self.resource if path is None else path),
            document,
            method=method,
            token=key,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        assert response.header("request-id")
        return response

    async def call(
        self, method: str = "GET", path: str | None = None, document: object = None, **headers: Any
    ) -> Any:
        """Return the document of a response that succeeds."""
        response = await self.send(method, path, document, **headers)
        assert response.status == 200, response.body
        return json.loads(response.body)

    async def fault(
        self, method: str = "GET", path: str | None = None, document: object = None, **headers: Any
    ) -> tuple[int, str, str]:
        """Return the status, type and message of a response that fails."""
        return fault_of(await self.send(method, path, document, **headers))


def fault_of(response: RawResponse) -> tuple[int, str, str]:
    document = json.loads(response.body)
    assert document["type"] == "error"
    assert document["request_id"] == response.header("request-id")
    return response.status, document["error"]["type"], document["error"]["message"]
