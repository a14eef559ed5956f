"""Cross-origin requests (CORS): web pages of the configured origins may use the proxy.

Without ``ALLOWED_ORIGINS`` this is disabled, and no ``Access-Control-*`` header is ever sent. With
it:

- A preflight request needs no credential, since browsers send none with it, and is not
  forwarded.
- A page of an allowed origin may read every response to its requests, errors included, with all
  headers. ``*`` allows that as long as no credentials are allowed
  (https://fetch.spec.whatwg.org/#http-access-control-expose-headers). They never are: that would be
  cookies, and a page sends its token in a header.
- Responses to pages of other origins have no such header, so that browsers withhold them. Whether
  their requests are served at all is up to authentication. Nor does a public page gain access to a
  private network (``Access-Control-Allow-Private-Network``).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tornado.web import OutputTransform

from tornadoproxy.handlers.base import METHODS, BaseHandler

if TYPE_CHECKING:
    from collections.abc import Collection

    from tornado.httputil import HTTPHeaders, HTTPServerRequest

MAX_AGE = 7200
"""How long browsers may cache the response to a preflight, in seconds: Chromium's own limit."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def is_preflight(request: HTTPServerRequest, origins: Collection[str]) -> bool:
    """Whether the request is a preflight for a page of one of `origins`."""
    return (
        request.method == "OPTIONS"
        and "Access-Control-Request-Method" in request.headers
        and request.headers.get("Origin") in origins
    )


class PreflightHandler(BaseHandler):
    """The response to a preflight: the page may send what it announces."""

    SUPPORTED_METHODS = ("OPTIONS",)

    def prepare(self) -> None:
        self.refuse_body()
        headers = self.request.headers
        method = headers["Access-Control-Request-Method"]
        if method in METHODS:
            self.set_header("Access-Control-Allow-Methods", method)
        listed = headers.get("Access-Control-Request-Headers", "").split(",")
        names = [name for each in listed if _TOKEN.fullmatch(name := each.strip(" \t"))]
        if names:
            self.set_header("Access-Control-Allow-Headers", ", ".join(names))
        self.set_header("Access-Control-Max-Age", str(MAX_AGE))
        self.set_status(204)
        self.end()


class ResponseToPages(OutputTransform):
    """The headers that let a page read a response, wherever the response comes from.

    :param origins: those whose pages may read it.
    :param request: of the page.
    """

    def __init__(self, origins: Collection[str], request: HTTPServerRequest) -> None:
        self._origins = origins
        self._origin = request.headers.get("Origin")

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        # for all origins: a cache must not keep the response to one for another
        headers.add("Vary", "Origin")
        if self._origin is not None and self._origin in self._origins:
            headers["Access-Control-Allow-Origin"] = self._origin
            headers["Access-Control-Expose-Headers"] = "*"
        return status_code, headers, chunk
