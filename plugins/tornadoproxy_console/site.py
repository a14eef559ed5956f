"""The console's requests: from a path to a view, and what each response has in common.

The page is public for the proxy, since the console has a sign-in of its own. A form is accepted
from this site alone, and with the token of its session.
"""

from __future__ import annotations

import contextlib
import hashlib
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

from tornadoproxy import (
    Attempts,
    AuthenticationFailed,
    DatabaseUnavailable,
    Denied,
    InvalidRequest,
    PageResponse,
    ProxyError,
    Secret,
    admin,
)
from tornadoproxy_console import sessions, texts, views
from tornadoproxy_console.asking import ORGANIZATION, Administrator, Person, with_credential
from tornadoproxy_console.feeds import Feeds
from tornadoproxy_console.rendering import render
from tornadoproxy_console.sessions import Sessions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tornadoproxy import Identity, PageRequest, RunningProxy, Settings
    from tornadoproxy_console.live import Live
    from tornadoproxy_console.sessions import Session

PATH = "/console"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
STATIC_TYPES = {
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


class Site:
    """The console of one proxy.

    :param apis: the parts of the Admin API.
    :param settings: returns the current settings.
    :param live: what happens at present.
    """

    def __init__(
        self,
        apis: Sequence[admin.Api],
        proxy: RunningProxy,
        settings: Callable[[], Settings],
        live: Live,
    ) -> None:
        self.proxy = proxy
        self.settings = settings
        self._resources = admin.Resources(each for api in apis for each in api.resources)
        self.live = live
        self.feeds = Feeds(live, proxy.in_flight)
        self._sessions = Sessions()
        self._attempts = Attempts("wrong keys")
        files = resources.files(__package__) / "static"
        self._static = {name: (files / name).read_bytes() for name in STATIC_TYPES}
        self.version = hashlib.sha256(b"".join(self._static.values())).hexdigest()[:12]

    async def serve(self, page_request: PageRequest) -> PageResponse:
        """Return the response to a request for the console."""
        visit = Visit(self, page_request)
        self.live.own += 1
        try:
            response = await self._respond(visit)
        except ProxyError as error:
            response = visit.failure(error)
        finally:
            self.live.own -= 1
        return response

    async def _respond(self, visit: Visit) -> PageResponse:
        if visit.path in ("", "/"):
            return visit.redirect("/me") if visit.path else visit.redirect("/")
        if visit.path.startswith("/static/"):
            return self._file(visit.path.removeprefix("/static/"))
        if visit.is_post:
            visit.check_origin()
        if visit.path == "/sign-in":
            return await self._sign_in(visit)
        if visit.path.startswith("/sign-in/"):
            return await self._sign_in_by(visit, visit.path.removeprefix("/sign-in/"))
        token = sessions.cookie_of(visit.request.incoming)
        session = self._sessions.find(token)
        if session is None:
            return self._to_sign_in(visit)
        try:
            visit.session, visit.actor = session, await self.actor(visit, session)
        except AuthenticationFailed:
            self._sessions.end(token)
            return self._to_sign_in(visit)
        if visit.is_post and not session.has_form_token(visit.field("form_token")):
            raise Denied(texts.FORGED)
        if visit.path == "/sign-out" and visit.is_post:
            await self._end(token)
            return visit.redirect("/sign-in", cookie="")
        return await views.serve(visit)

    async def actor(self, visit: Visit, session: Session) -> Administrator | Person:
        """Return who is signed in.

        :raises AuthenticationFailed: the credential is not valid any more.
        """
        credential = await session.signed_in.credential()
        if not session.is_admin_key:
            identity = await self._identity(visit, credential)
            if identity.admin_access is None:
                return Person(identity, self._resources, self.proxy, visit.request)
        administrator = Administrator(self.proxy, visit.request, credential)
        await administrator.enter()
        return administrator

    async def is_signed_in(self, visit: Visit) -> bool:
        """Return whether the session of an earlier request still lasts."""
        session = self._sessions.find(sessions.cookie_of(visit.request.incoming))
        try:
            return session is not None and bool(await self.actor(visit, session))
        except ProxyError:
            return False

    async def _identity(self, visit: Visit, credential: Secret) -> Identity:
        incoming = with_credential(visit.request.incoming, credential, "GET", ORGANIZATION)
        identity = await self.proxy.authenticate(incoming)
        if identity.anonymous:
            raise AuthenticationFailed(texts.WRONG_KEY)
        return identity

    async def _sign_in(self, visit: Visit) -> PageResponse:
        following = visit.field("next") if visit.is_post else visit.query("next")
        if not visit.is_post:
            return self._sign_in_page(visit, following)
        address = visit.request.incoming.remote_ip
        try:
            self._attempts.check(address)
            session = await self._begin(visit, visit.field("key").strip())
        except ProxyError as error:
            if isinstance(error, AuthenticationFailed):
                self._attempts.count(address)
            fault = texts.WRONG_KEY if error.status == 401 else error.message
            return self._sign_in_page(visit, following, fault, error.status)
        return await self._enter(visit, session, following)

    async def _sign_in_by(self, visit: Visit, name: str) -> PageResponse:
        """Sign in by one of the ways that plugins offer: lead the browser away, and take it back.

        :raises Denied: 404, there is no such way.
        """
        following = visit.field("next") if visit.is_post else visit.query("next")
        for way in self.proxy.sign_in_ways():
            if way.name == name:
                break
        else:
            raise Denied(texts.NOT_FOUND, status=404)
        try:
            if visit.is_post:
                back = f"{visit.root}{visit.path}?next={quote(own_path(following))}"
                return await way.begin(visit.request, back)
            signed_in = await way.finish(visit.request, int(sessions.LIFETIME))
        except ProxyError as error:
            return self._sign_in_page(visit, following, error.message, error.status)
        session = self._sessions.begin(signed_in, is_admin_key=False)
        return await self._enter(visit, session, following)

    def _sign_in_page(
        self, visit: Visit, following: str, fault: str = "", status: int = 200
    ) -> PageResponse:
        ways = self.proxy.sign_in_ways()
        return visit.page(
            "sign_in.html",
            texts.SIGN_IN,
            status=status,
            following=following,
            fault=fault,
            ways=ways,
        )

    async def _enter(self, visit: Visit, session: str, following: str) -> PageResponse:
        """Show a page in a new session, and end an earlier one of the browser."""
        await self._end(sessions.cookie_of(visit.request.incoming))
        return visit.redirect(own_path(following), cookie=session)

    async def _end(self, token: str) -> None:
        session = self._sessions.end(token)
        # a sign-in that cannot be ended now ends with the session's lifetime
        with contextlib.suppress(DatabaseUnavailable):
            if session is not None:
                await session.signed_in.end()

    async def _begin(self, visit: Visit, key: str) -> str:
        """Begin a session, and return what its cookie holds.

        :raises ProxyError: the key is refused.
        """
        if not key or not key.isascii() or not key.isprintable():
            raise AuthenticationFailed(texts.WRONG_KEY)
        credential = Secret(key)
        try:
            await self._identity(visit, credential)
            is_admin_key = False
        except AuthenticationFailed:
            # after the others: a wrong admin key counts for the Admin API's own limit as well
            await Administrator(self.proxy, visit.request, credential).enter()
            is_admin_key = True
        signed_in = sessions.holder_of(credential)
        return self._sessions.begin(signed_in, is_admin_key=is_admin_key, key=key)

    def _to_sign_in(self, visit: Visit) -> PageResponse:
        following = "" if visit.is_post else f"?next={quote(visit.path)}"
        # a browser that followed a link of another site has a cookie, and has not sent it
        sent = sessions.cookie_of(visit.request.incoming)
        return visit.redirect(f"/sign-in{following}", cookie="" if sent else None)

    def _file(self, name: str) -> PageResponse:
        if name not in self._static:
            raise Denied(texts.NOT_FOUND, status=404)
        caching = {"Cache-Control": "public, max-age=31536000, immutable"}
        return PageResponse(self._static[name], STATIC_TYPES[name], headers=HEADERS | caching)


class Visit:
    """One request, and the means to respond to it.

    :ivar root: the path of the console, as the browser sees it, without a slash at its end.
    :ivar path: the path below that, not decoded.
    :ivar actor: who is signed in.
    """

    actor: Administrator | Person

    def __init__(self, site: Site, request: PageRequest) -> None:
        self.site = site
        self.request = request
        self.session: Session | None = None
        base = urlsplit(request.base_url)
        self._secure = base.scheme == "https"
        self._host = base.netloc
        self.root = f"{base.path}{PATH}"
        self.path = request.incoming.path.removeprefix(PATH)
        self.is_post = request.incoming.method == "POST"
        self._fields: Mapping[str, list[str]] | None = None

    @property
    def administrator(self) -> Administrator:
        """Who is signed in, on a page for administrators."""
        assert isinstance(self.actor, Administrator)
        return self.actor

    @property
    def person(self) -> Person:
        """Who is signed in, on a page for everybody else."""
        assert isinstance(self.actor, Person)
        return self.actor

    def query(self, name: str) -> str:
        """Return a field of the query; empty without it."""
        return self.request.query.get(name, ("",))[0].strip()

    def field(self, name: str) -> str:
        """Return a field of the form; empty without it.

        :raises InvalidRequest: the body is no form.
        """
        if self._fields is None:
            try:
                text = self.request.body.decode()
                self._fields = parse_qs(text, keep_blank_values=True, max_num_fields=100)
            except ValueError:
                raise InvalidRequest(texts.NO_FORM) from None
        return self._fields.get(name, [""])[0]

    def check_origin(self) -> None:
        """Refuse a form of another site (RFC 6454).

        :raises Denied: 403.
        """
        origin = self.request.incoming.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != self._host:
            raise Denied(texts.FORGED)

    def page(
        self,
        template: str,
        title: str,
        *,
        status: int = 200,
        **values: Any,  # Any: as the template needs
    ) -> PageResponse:
        """Return a page in the console's frame."""
        body = render(
            template,
            title=title,
            visit=self,
            actor=getattr(self, "actor", None),
            root=self.root,
            version=self.site.version,
            done=texts.DONE.get(self.query("done"), ""),
            form_token=self.session.form_token if self.session else "",
            navigation=views.navigation(self),
            **values,
        )
        return PageResponse(body, "text/html; charset=utf-8", status, HEADERS)

    def redirect(self, path: str, *, cookie: str | None = None) -> PageResponse:
        """Return a redirection to another page of the console.

        :param cookie: what the session's cookie holds from now on; empty removes it.
        """
        headers = HEADERS | {"Location": f"{self.root}{path}"}
        if cookie is not None:
            headers["Set-Cookie"] = sessions.cookie_header(cookie, self.root, secure=self._secure)
        return PageResponse(b"", "text/html; charset=utf-8", 303, headers)

    def headers(self) -> dict[str, str]:
        """Return the headers of each response."""
        return dict(HEADERS)

    async def is_signed_in(self) -> bool:
        """Return whether the session of this visit still lasts."""
        return await self.site.is_signed_in(self)

    def download(self, body: bytes, content_type: str, name: str) -> PageResponse:
        """Return a file to save."""
        disposition = {"Content-Disposition": f'attachment; filename="{name}"'}
        return PageResponse(body, content_type, headers=HEADERS | disposition)

    def failure(self, error: ProxyError) -> PageResponse:
        """Return the page of an error."""
        return self.page("error.html", texts.FAILED, status=error.status, message=error.message)


def own_path(path: str) -> str:
    """Return `path` if it is one of the console's, as it writes it itself; otherwise its first."""
    parts = urlsplit(path)
    is_own = path.startswith("/") and not (parts.netloc or parts.scheme or parts.query)
    return path if is_own and quote(path, safe="/%") == path and "//" not in path else "/"
