"""Ways to sign in with a browser, which one plugin offers and another has on its sign-in page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from tornadoproxy.plugin.web.pages import PageRequest, PageResponse
    from tornadoproxy.secret import Secret


class SignedIn(Struct, frozen=True):
    """A person who has signed in with a browser, for the page that holds their session.

    :param credential: returns a credential that `authenticate` accepts as the person's at present:
        a new one when the earlier is about to expire. It raises `AuthenticationFailed` when the
        sign-in has ended, and `Denied` when that cannot be known.
    :param end: ends the sign-in, and with it its credentials. It raises `DatabaseUnavailable`.
    """

    credential: Callable[[], Awaitable[Secret]]
    end: Callable[[], Awaitable[None]]


class SignInWay(Struct, frozen=True):
    """One way to sign in with a browser.

    :param name: for paths: lower-case letters, digits and dashes.
    :param title: what people know it by, after "Sign in with": ``login.example.com``.
    :param begin: returns the response that leads a browser away to sign in. It gets the browser's
        request, which its caller has found to come from a page of its own, and the path on this
        proxy, with its query, to which the browser returns.
    :param finish: returns who has signed in, for the request with which a browser returns: once,
        and in the browser alone that has begun it. It gets the seconds after which the sign-in ends
        at the latest.

    Both may raise a `ProxyError`, whose text is shown to the person.
    """

    name: str
    title: str
    begin: Callable[[PageRequest, str], Awaitable[PageResponse]]
    finish: Callable[[PageRequest, int], Awaitable[SignedIn]]
