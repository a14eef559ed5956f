"""Lets web pages of configured origins use the proxy from a browser, and no others.

Without ``ALLOWED_ORIGINS`` nothing of this is in place, and no ``Access-Control-*`` header is ever
sent. With it:

- A browser's question whether it may ask, a preflight, is answered without a credential, since
  browsers send none with it. It goes no further.
- Every answer to a page of an allowed origin, errors included, may be read by that page, with all
  of its headers. ``*`` says so; it holds as long as no credentials are allowed
  (https://fetch.spec.whatwg.org/#http-access-control-expose-headers). They never are: that would
  be cookies, and a page's token goes into a header.
- To pages of other origins an answer says nothing, so that browsers keep it from them; whether
  there is one is up to authentication. Nor is a public page let into a private network
  (``Access-Control-Allow-Private-Network``).
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
"""How long browsers may remember a preflight's answer, in seconds. Chromium's own limit."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


def is_preflight(request: HTTPServerRequest, origins: Collection[str]) -> bool:
    """Whether a page of one of `origins` asks, through its browser, whether it may ask."""
    return (
        request.method == "OPTIONS"
        and "Access-Control-Request-Method" in request.headers
        and request.headers.get("Origin") in origins
    )


class PreflightHandler(BaseHandler):
    """What a page asks for may be asked for; whether it is granted is decided then."""

    SUPPORTED_METHODS = ("OPTIONS",)

    def prepare(self) -> None:
        self.refuse_body()
        asked = self.request.headers
        method = asked["Access-Control-Request-Method"]
        if method in METHODS:
            self.set_header("Access-Control-Allow-Methods", method)
        listed = asked.get("Access-Control-Request-Headers", "").split(",")
        names = [name for each in listed if _TOKEN.fullmatch(name := each.strip(" \t"))]
        if names:
            self.set_header("Access-Control-Allow-Headers", ", ".join(names))
        self.set_header("Access-Control-Max-Age", str(MAX_AGE))
        self.set_status(204)
        self.finish()


class ResponseToPages(OutputTransform):
    """Adds to an answer, wherever it comes from, that the page which asked may read it.

    :param origins: those whose pages may.
    :param request: the one that is answered.
    """

    def __init__(self, origins: Collection[str], request: HTTPServerRequest) -> None:
        self._origins = origins
        self._origin = request.headers.get("Origin")

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        # to all: a cache must not keep one origin's answer for another
        headers.add("Vary", "Origin")
        if self._origin is not None and self._origin in self._origins:
            headers["Access-Control-Allow-Origin"] = self._origin
            headers["Access-Control-Expose-Headers"] = "*"
        return status_code, headers, chunk
