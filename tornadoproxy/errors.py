"""The exceptions of the proxy; the type says which side failed.

::

    ProxyError                      ends a request with an error of the proxy's own
    ├── ClientError                 the client's fault, found before anything is sent upstream
    │   ├── InvalidRequest          400
    │   ├── AuthenticationFailed    401
    │   ├── Denied                  the status that a plugin or a rule chooses, 403 by default
    │   ├── NotFound                404
    │   ├── MethodNotAllowed        405
    │   ├── ClientTimeout           408
    │   ├── BodyTooLarge            413
    │   └── LoopDetected            508
    ├── Overloaded                  529, and 503 in the OpenAI dialect
    ├── PluginFailed                503  a deciding plugin raised, hung, or returned nonsense
    └── UpstreamError               the upstream's fault
        ├── UpstreamReported        its own error, in place of a response or within one
        ├── CredentialRefused       502  it refused the proxy's own credential
        ├── UpstreamUnreachable     502  no connection
        ├── UpstreamProtocolError   502  its response is not HTTP
        ├── UpstreamClosed          502  it disconnected before its response was whole
        └── UpstreamTimeout         504  it was silent for too long

    ConfigurationError              a start-up mistake, one line each for the operator
    DatabaseUnavailable             a plugin's database cannot be read or written at present

`tornadoproxy.protocol.dialects` gives an error its shape on the wire. Messages are for the people
at the clients: they say what to do, and never contain a credential.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class ProxyError(Exception):
    """An error of the proxy's own that ends a request.

    :param message: for the person at the client: what is wrong and what to do.
    :param status: the HTTP status; each subclass has its own default.
    :param error_type: the error type on the wire; by default it follows from the status.
    :param code: the ``code`` in the OpenAI dialect, where one is usual.
    :param param: the ``param`` in the OpenAI dialect: the field of the request that is wrong.
    :param retry_after: seconds after which a retry makes sense, sent as ``retry-after``.
    :param headers: further response headers.
    """

    status = 500

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        error_type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status
        self.error_type = error_type
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = headers or {}


class ClientError(ProxyError):
    """The client's fault; nothing was sent upstream."""

    status = 400


class InvalidRequest(ClientError):
    """The request cannot be relayed as it stands."""


class AuthenticationFailed(ClientError):
    """No credential, or a wrong one. Always 401: key helpers refresh on nothing else."""

    status = 401

    def __init__(self, message: str) -> None:
        super().__init__(message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class Denied(ClientError):
    """The client is authenticated, but the request is refused."""

    status = 403


class NotFound(ClientError):
    """The path does not exist."""

    status = 404


class MethodNotAllowed(ClientError):
    """The path exists, but not with this method.

    :param allowed: the methods that the path has (RFC 9110 §15.5.6).
    """

    status = 405

    def __init__(self, message: str, allowed: Iterable[str]) -> None:
        super().__init__(message, headers={"Allow": ", ".join(allowed)})


class ClientTimeout(ClientError):
    """The client did not send the whole request in time."""

    status = 408


class BodyTooLarge(ClientError):
    """The request body is over the limit."""

    status = 413


class LoopDetected(ClientError):
    """The request has passed this proxy before: its upstream leads back to it."""

    status = 508


class Overloaded(ProxyError):
    """Too many requests are in flight."""

    status = 529


class PluginFailed(ProxyError):
    """A plugin failed to decide; the request is refused."""

    status = 503


class UpstreamError(ProxyError):
    """The upstream's fault."""

    status = 502


class UpstreamReported(UpstreamError):
    """An error in the words of the upstream, or of the model.

    They may quote the request, so they go to the client alone, and to no log.
    """


class CredentialRefused(UpstreamError):
    """The upstream responded with 401, which means the proxy's own credential: no other is sent."""

    def __init__(self) -> None:
        super().__init__(
            "The upstream refused this proxy's own credential, not yours. Tell the operator "
            "of this proxy; a retry does not help.",
            headers={"X-Should-Retry": "false"},
        )


class UpstreamUnreachable(UpstreamError):
    """No connection to the upstream: refused, reset, unresolvable, or TLS not trusted."""


class UpstreamProtocolError(UpstreamError):
    """The upstream's response is not HTTP/1.1."""


class UpstreamClosed(UpstreamError):
    """The upstream closed or reset the connection before its response was whole."""


class UpstreamTimeout(UpstreamError):
    """The upstream took too long to connect, to begin its response, or to continue it."""

    status = 504


class ConfigurationError(Exception):
    """One or more start-up mistakes.

    :param faults: one line each: what is wrong, the setting's name, and what to do; no credential.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class DatabaseUnavailable(Exception):
    """A plugin's database cannot be used at present; the text says why and what to do."""
