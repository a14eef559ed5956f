"""Errors in both dialects, in their documented form and as the SDKs read them."""

from __future__ import annotations

import inspect
import json

import anthropic
import httpx2
import openai
import pytest

from tornadoproxy import AuthenticationFailed, Denied, ProxyError, errors
from tornadoproxy.errors import (
    BodyTooLarge,
    ClientError,
    ClientTimeout,
    CredentialRefused,
    InvalidRequest,
    LoopDetected,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    PluginFailed,
    UpstreamClosed,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tornadoproxy.protocol.dialects import Dialect

MESSAGE = 'Nothing "here" \\ there\r\n\u2028 é 世 😀'
REQUEST_ID = "req_0123456789abcdef"

ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    418: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OPENAI_TYPES = {
    401: "invalid_request_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
}

OWN_ERRORS: list[tuple[ProxyError, int]] = [
    *((error("m"), 400) for error in (ClientError, InvalidRequest)),
    *((error("m"), 502) for error in (UpstreamError, UpstreamUnreachable)),
    *((error("m"), 502) for error in (UpstreamProtocolError, UpstreamClosed)),
    *((ProxyError("m"), 500), (AuthenticationFailed("m"), 401), (Denied("m"), 403)),
    *((NotFound("m"), 404), (MethodNotAllowed("m", ["GET"]), 405), (ClientTimeout("m"), 408)),
    *((BodyTooLarge("m"), 413), (LoopDetected("m"), 508), (Overloaded("m"), 529)),
    *((PluginFailed("m"), 503), (CredentialRefused(), 502), (UpstreamTimeout("m"), 504)),
]


def response(dialect: Dialect, error: ProxyError) -> httpx2.Response:
    return httpx2.Response(
        dialect.error_status(error),
        headers=dialect.error_headers(error, REQUEST_ID),
        content=dialect.error_body(error, REQUEST_ID),
    )


def client_of(dialect: Dialect, error: ProxyError) -> httpx2.Client:
    """A client for the SDKs that gets a response with `error`."""
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: response(dialect, error)))


@pytest.mark.parametrize(
    ("dialect", "paths"),
    [
        (Dialect.OPENAI, "/openai/v1/chat/completions /openai/ /openai"),
        (Dialect.ANTHROPIC, "/v1/messages /v1/openai/x /  * /openaix /OpenAI/v1"),
    ],
)
def test_path_decides_the_dialect(dialect: Dialect, paths: str) -> None:
    for path in paths.split(" "):
        assert Dialect.of_path(path) is dialect


def test_own_errors_are_all_listed() -> None:
    classes = (each for _, each in inspect.getmembers(errors, inspect.isclass))
    found = {each for each in classes if issubclass(each, ProxyError)}
    assert {type(error) for error, _ in OWN_ERRORS} == found


@pytest.mark.parametrize(("error", "status"), OWN_ERRORS)
def test_own_error_has_status_and_whose_fault_in_its_type(error: ProxyError, status: int) -> None:
    assert Dialect.ANTHROPIC.error_status(error) == status
    assert Dialect.OPENAI.error_status(error) == (503 if type(error) is Overloaded else status)
    assert isinstance(error, ClientError) is (400 <= status < 500 or status == 508)
    assert isinstance(error, UpstreamError) is (status in {502, 504})
    for dialect in Dialect:
        headers = response(dialect, error).headers
        assert headers["content-type"] == "application/json"
        assert headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
        assert json.loads(dialect.error_body(error, ""))["error"]["message"] == str(error)


@pytest.mark.parametrize("status", ANTHROPIC_TYPES)
def test_anthropic_error_has_the_type_of_its_status(status: int) -> None:
    error = ProxyError(MESSAGE, status=status, code="c", param="p")
    assert json.loads(Dialect.ANTHROPIC.error_body(error, REQUEST_ID)) == {
        "type": "error",
        "error": {"type": ANTHROPIC_TYPES[status], "message": MESSAGE},
        "request_id": REQUEST_ID,
    }


@pytest.mark.parametrize("status", OPENAI_TYPES)
def test_openai_error_has_the_type_of_its_status(status: int) -> None:
    error = ProxyError(MESSAGE, status=status, param="p", code="c")
    fields = {"message": MESSAGE, "type": OPENAI_TYPES[status], "param": "p", "code": "c"}
    assert json.loads(Dialect.OPENAI.error_body(error, REQUEST_ID)) == {"error": fields}


def test_error_is_raised_by_the_anthropic_sdk() -> None:
    headers = {"X-Should-Retry": "false"}
    spent = Denied(MESSAGE, status=429, error_type="billing_error", headers=headers)
    client = anthropic.Anthropic(
        api_key="k", max_retries=0, http_client=client_of(Dialect.ANTHROPIC, spent)
    )
    with client, pytest.raises(anthropic.RateLimitError) as raised:
        client.models.list()
    error = raised.value
    assert (error.status_code, error.type, error.api_message) == (429, "billing_error", MESSAGE)
    assert error.request_id == REQUEST_ID
    assert error.response.headers["x-should-retry"] == "false"


def test_error_is_raised_by_the_openai_sdk() -> None:
    client = openai.OpenAI(
        api_key="k", max_retries=0, http_client=client_of(Dialect.OPENAI, Overloaded(MESSAGE))
    )
    with client, pytest.raises(openai.InternalServerError) as raised:
        client.models.list()
    error = raised.value
    assert (error.status_code, error.type, error.code) == (503, "server_error", None)
    assert error.request_id == REQUEST_ID
    assert MESSAGE in error.message


@pytest.mark.parametrize(
    ("error", "error_type", "code"),
    [
        (AuthenticationFailed(MESSAGE), "invalid_request_error", "invalid_api_key"),
        (Denied(MESSAGE, error_type="billing_error"), "insufficient_quota", "insufficient_quota"),
        (InvalidRequest(MESSAGE), "invalid_request_error", None),
    ],
)
def test_openai_code_follows_from_the_error(
    error: ProxyError, error_type: str, code: str | None
) -> None:
    found = json.loads(Dialect.OPENAI.error_body(error, REQUEST_ID))["error"]
    assert (found["type"], found["code"], found["param"]) == (error_type, code, None)


@pytest.mark.parametrize(
    ("seconds", "header"), [(None, None), (0, "0"), (1, "1"), (1.2, "2"), (0.001, "1")]
)
@pytest.mark.parametrize("dialect", Dialect)
def test_retry_after_is_rounded_up_to_whole_seconds(
    dialect: Dialect, seconds: float | None, header: str | None
) -> None:
    headers = response(dialect, Overloaded(MESSAGE, retry_after=seconds)).headers
    assert headers.get("retry-after") == header


def test_stream_error_has_the_form_of_its_dialect() -> None:
    """How the SDKs read it: see test_sse."""
    event = Dialect.ANTHROPIC.stream_error(UpstreamTimeout(MESSAGE), REQUEST_ID)
    name, data, *rest = event.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": "api_error", "message": MESSAGE},
        "request_id": REQUEST_ID,
    }
    error = UpstreamClosed(MESSAGE)
    body = Dialect.OPENAI.error_body(error, REQUEST_ID)
    assert Dialect.OPENAI.stream_error(error, REQUEST_ID) == b"data: " + body + b"\n\n"
    assert b"billing_error" in Dialect.ANTHROPIC.stream_error(Denied("m", status=402), REQUEST_ID)


@pytest.mark.parametrize(
    "message", ["a\nb\rc\r\n\r\nd\n\ne: f", "a\x85é\u2028b\u2029", "half of a pair: \ud83d"]
)
@pytest.mark.parametrize("dialect", Dialect)
def test_error_of_any_message_is_one_line_of_json(dialect: Dialect, message: str) -> None:
    error = InvalidRequest(message)
    event = dialect.stream_error(error, REQUEST_ID)
    assert event.count(b"\n\n") == 1
    for written in (dialect.error_body(error, REQUEST_ID), event.partition(b"data: ")[2].rstrip()):
        assert len(written.decode().splitlines()) == 1
        assert json.loads(written)["error"]["message"] == message
