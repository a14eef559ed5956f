"""Errors in both dialects, in their documented form."""

from __future__ import annotations

import inspect
import json

import httpx2
import pytest

from tornadoproxy import AuthenticationFailed, Denied, ProxyError, errors
from tornadoproxy.errors import ClientError, InvalidRequest, Overloaded, UpstreamError
from tornadoproxy.protocol.dialects import Dialect

MESSAGE = 'Nothing "here" \\ there\r\n\u2028 é 世 😀'
REQUEST_ID = "req_0123456789abcdef"

OWN_ERRORS: list[tuple[ProxyError, int]] = [
    *((error("m"), 400) for error in (ClientError, InvalidRequest)),
    *((AuthenticationFailed("m"), 401), (Denied("m"), 403), (errors.NotFound("m"), 404)),
    *((errors.MethodNotAllowed("m", ["GET"]), 405), (errors.ClientTimeout("m"), 408)),
    *((errors.BodyTooLarge("m"), 413), (ProxyError("m"), 500), (errors.CredentialRefused(), 502)),
    *((error("m"), 502) for error in (UpstreamError, errors.UpstreamReported)),
    (errors.UpstreamUnreachable("m"), 502),
    *((error("m"), 502) for error in (errors.UpstreamProtocolError, errors.UpstreamClosed)),
    *((errors.PluginFailed("m"), 503), (errors.UpstreamTimeout("m"), 504)),
    *((errors.LoopDetected("m"), 508), (Overloaded("m"), 529)),
]


def response(dialect: Dialect, error: ProxyError) -> httpx2.Response:
    return httpx2.Response(
        dialect.error_status(error),
        headers=dialect.error_headers(error, REQUEST_ID),
        content=dialect.error_body(error, REQUEST_ID),
    )


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


@pytest.mark.parametrize(
    ("status", "anthropic", "openai"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "invalid_request_error"),
        (402, "billing_error", "invalid_request_error"),
        (403, "permission_error", "permission_error"),
        (404, "not_found_error", "invalid_request_error"),
        (409, "conflict_error", "invalid_request_error"),
        (413, "request_too_large", "invalid_request_error"),
        (418, "invalid_request_error", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "server_error"),
        (503, "overloaded_error", "server_error"),
        (504, "timeout_error", "server_error"),
        (529, "overloaded_error", "server_error"),
    ],
)
def test_error_has_the_type_of_its_status(status: int, anthropic: str, openai: str) -> None:
    error = ProxyError(MESSAGE, status=status, code="c", param="p", headers={"X-A": "b"})
    found = [response(dialect, error) for dialect in Dialect]
    assert [each.headers["x-a"] for each in found] == ["b", "b"]
    assert [each.json() for each in found] == [
        {
            "type": "error",
            "error": {"type": anthropic, "message": MESSAGE},
            "request_id": REQUEST_ID,
        },
        {"error": {"message": MESSAGE, "type": openai, "param": "p", "code": "c"}},
    ]
    assert found[0].headers["request-id"] == found[1].headers["x-request-id"] == REQUEST_ID


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
    event = Dialect.ANTHROPIC.stream_error(errors.UpstreamTimeout(MESSAGE), REQUEST_ID)
    name, data, *rest = event.split(b"\n")
    assert (name, rest) == (b"event: error", [b"", b""])
    assert json.loads(data.removeprefix(b"data: ")) == {
        "type": "error",
        "error": {"type": "api_error", "message": MESSAGE},
        "request_id": REQUEST_ID,
    }
    error = errors.UpstreamClosed(MESSAGE)
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
