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

# status: the type that Anthropic's clients know, and the class that its SDK raises
ANTHROPIC: dict[int, tuple[str, type[anthropic.APIStatusError]]] = {
    400: ("invalid_request_error", anthropic.BadRequestError),
    401: ("authentication_error", anthropic.AuthenticationError),
    402: ("billing_error", anthropic.PaymentRequiredError),
    403: ("permission_error", anthropic.PermissionDeniedError),
    404: ("not_found_error", anthropic.NotFoundError),
    409: ("conflict_error", anthropic.ConflictError),
    413: ("request_too_large", anthropic.ContentTooLargeError),
    418: ("invalid_request_error", anthropic.APIStatusError),
    429: ("rate_limit_error", anthropic.RateLimitError),
    500: ("api_error", anthropic.InternalServerError),
    503: ("overloaded_error", anthropic.ServiceUnavailableError),
    504: ("timeout_error", anthropic.GatewayTimeoutError),
    529: ("overloaded_error", anthropic.OverloadedError),
}

# status: the type of OpenAI's API, and the class that its SDK raises
OPENAI: dict[int, tuple[str, type[openai.APIStatusError]]] = {
    400: ("invalid_request_error", openai.BadRequestError),
    401: ("invalid_request_error", openai.AuthenticationError),
    403: ("permission_error", openai.PermissionDeniedError),
    418: ("invalid_request_error", openai.APIStatusError),
    429: ("rate_limit_error", openai.RateLimitError),
    500: ("server_error", openai.InternalServerError),
    529: ("server_error", openai.InternalServerError),
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


def raised_by_anthropic(error: ProxyError) -> anthropic.APIStatusError:
    """The exception of the Anthropic SDK for a response with `error`."""
    transport = httpx2.MockTransport(lambda _: response(Dialect.ANTHROPIC, error))
    client = anthropic.Anthropic(
        api_key="k",
        base_url="http://proxy.example",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    )
    with client, pytest.raises(anthropic.APIStatusError) as raised:
        client.models.list()
    return raised.value


def raised_by_openai(error: ProxyError) -> openai.APIStatusError:
    transport = httpx2.MockTransport(lambda _: response(Dialect.OPENAI, error))
    client = openai.OpenAI(
        api_key="k",
        base_url="http://proxy.example/openai/v1",
        max_retries=0,
        http_client=httpx2.Client(transport=transport),
    )
    with client, pytest.raises(openai.APIStatusError) as raised:
        client.models.list()
    return raised.value


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


@pytest.mark.parametrize("status", ANTHROPIC)
def test_anthropic_error_is_documented_and_raised_by_the_sdk(status: int) -> None:
    error_type, error_class = ANTHROPIC[status]
    error = ProxyError(MESSAGE, status=status, code="c", param="p")
    assert json.loads(Dialect.ANTHROPIC.error_body(error, REQUEST_ID)) == {
        "type": "error",
        "error": {"type": error_type, "message": MESSAGE},
        "request_id": REQUEST_ID,
    }
    raised = raised_by_anthropic(error)
    assert isinstance(raised, error_class)
    assert (raised.status_code, raised.type) == (status, error_type)
    assert (raised.api_message, raised.request_id) == (MESSAGE, REQUEST_ID)


@pytest.mark.parametrize("status", OPENAI)
def test_openai_error_is_documented_and_raised_by_the_sdk(status: int) -> None:
    error_type, error_class = OPENAI[status]
    error = ProxyError(MESSAGE, status=status, param="p", code="c")
    fields = {"message": MESSAGE, "type": error_type, "param": "p", "code": "c"}
    assert json.loads(Dialect.OPENAI.error_body(error, REQUEST_ID)) == {"error": fields}
    raised = raised_by_openai(error)
    assert isinstance(raised, error_class)
    assert (raised.status_code, raised.type) == (status, error_type)
    assert (raised.code, raised.param, raised.request_id) == ("c", "p", REQUEST_ID)


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


def test_spent_budget_keeps_its_type_and_headers() -> None:
    headers = {"X-Should-Retry": "false"}
    spent = Denied("m", status=429, error_type="billing_error", headers=headers)
    raised = raised_by_anthropic(spent)
    assert isinstance(raised, anthropic.RateLimitError)
    assert raised.type == "billing_error"
    assert raised.response.headers["x-should-retry"] == "false"


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
