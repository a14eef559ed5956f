"""The HTML of the sign-in: no script, no style but its own, no frame, nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import TYPE_CHECKING

from tornadoproxy import PageResponse, tables

if TYPE_CHECKING:
    from tornadoproxy_oidc.store import Grant

_STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 4rem auto; padding: 0 1rem }
code, input { font: 1.5rem ui-monospace, monospace; letter-spacing: .1em }
input { width: 12rem; padding: .3rem } button { font-size: 1rem; padding: .5rem 1.2rem }
.warning { border-left: .3rem solid #c60; padding-left: 1rem }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    # not no-referrer, with which a browser would send the form with "Origin: null"
    "Referrer-Policy": "same-origin",
}


def form(action: str, grant: Grant | None, browser_ip: str) -> PageResponse:
    """Return the page on which a person confirms a code, or types it.

    :param action: the path that the form is sent to.
    :param grant: of the code in the page's address; ``None`` if there is none.
    :param browser_ip: the address of this browser.
    """
    field = (
        '<p><label>Code on your device<br><input name="user_code" autocomplete="off" autofocus '
        'maxlength="12" required></label></p>'
    )
    if grant is not None:
        code, device_ip = escape(grant.user_code), escape(grant.remote_ip)
        field = (
            f"<p>Your device must show this code:</p><p><code>{code}</code></p>"
            f'<input type="hidden" name="user_code" value="{code}">'
            f"<p>It asked from {device_ip} at {escape(tables.timestamp(grant.created))}.</p>"
        )
        if grant.remote_ip != browser_ip:
            field += (
                f'<p class="warning">This browser has another address, {escape(browser_ip)}. '
                "Continue only if you know why.</p>"
            )
    return _page(
        "Sign in to Claude Code",
        f'<form method="post" action="{escape(action)}">{field}<p class="warning">Continue only if '
        "you began this sign-in yourself. Whoever sent you a link or a code gets to use your "
        f'account.</p><p><button>Continue</button> <button formaction="{escape(action)}/deny">Deny'
        "</button></p></form>",
    )


def leave(url: str, cookie: str | None = None) -> PageResponse:
    """Return the page that leads to the provider, or back from it to a page of this proxy.

    It is no redirect. Browsers apply ``form-action`` to those that follow a form, and the provider
    may redirect anywhere; and they send no cookies with ``SameSite=Strict`` along a chain of
    redirects that the provider began.
    """
    target = escape(url)
    return _page(
        "Sign in",
        f'<p><a href="{target}">Continue</a></p>',
        head=f'<meta http-equiv="refresh" content="0;url={target}">',
        cookie=cookie,
    )


def message(title: str, text: str, *, status: int = 200, cookie: str | None = None) -> PageResponse:
    """Return a page that only says something."""
    return _page(title, f"<p>{escape(text)}</p>", status=status, cookie=cookie)


def _page(
    title: str, body: str, *, head: str = "", status: int = 200, cookie: str | None = None
) -> PageResponse:
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style>{head}</head><body><h1>{escape(title)}</h1>{body}</body></html>"
    )
    headers = _HEADERS if cookie is None else {**_HEADERS, "Set-Cookie": cookie}
    return PageResponse(text.encode(), "text/html; charset=utf-8", status, headers)
