"""The shape of every error in both dialects, as WIRE's table has it and as the SDKs read it."""

from __future__ import annotations

import inspect
import json
from typing import Any

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
    429: ("rate_limit_error", anthropic.RateLimitError),
    500: ("api_error", anthropic.InternalServerError),
    502: ("api_error", anthropic.InternalServerError),
    503: ("overloaded_error", anthropic.ServiceUnavailableError),
    504: ("timeout_error", anthropic.GatewayTimeoutError),
    529: ("overloaded_error", anthropic.OverloadedError),
}

# status: the class that OpenAI's SDK raises, and the type where WIRE names one
OPENAI: dict[int, tuple[str | None, type[openai.APIStatusError]]] = {
    400: ("invalid_request_error", openai.BadRequestError),
    401: ("invalid_request_error", openai.AuthenticationError),
    403: (None, openai.PermissionDeniedError),
    404: ("invalid_request_error", openai.NotFoundError),
    409: (None, openai.ConflictError),
    413: ("invalid_request_error", openai.APIStatusError),
    429: ("rate_limit_error", openai.RateLimitError),
    500: ("server_error", openai.InternalServerError),
    502: ("server_error", openai.InternalServerError),
    503: ("server_error", openai.InternalServerError),
    504: ("server_error", openai.InternalServerError),
    529: ("server_error", openai.InternalServerError),
}

OWN_ERRORS: list[tuple[ProxyError, int]] = [
    (ProxyError("m"), 500),
    (ClientError("m"), 400),
    (InvalidRequest("m"), 400),
    (AuthenticationFailed("m"), 401),
    (Denied("m"), 403),
    (NotFound("m"), 404),
    (MethodNotAllowed("m", ["GET"]), 405),
    (ClientTimeout("m"), 408),
    (BodyTooLarge("m"), 413),
    (LoopDetected("m"), 508),
    (Overloaded("m"), 529),
    (PluginFailed("m"), 503),
    (UpstreamError("m"), 502),
    (CredentialRefused(), 502),
    (UpstreamUnreachable("m"), 502),
    (UpstreamProtocolError("m"), 502),
    (UpstreamClosed("m"), 502),
    (UpstreamTimeout("m"), 504),
]

Document = dict[str, Any]  # Any: JSON


def response(dialect: Dialect, error: ProxyError) -> httpx2.Response:
    """The HTTP answer that `error` becomes."""
    return httpx2.Response(
        dialect.error_status(error),
        headers=dialect.error_headers(error, REQUEST_ID),
        content=dialect.error_body(error, REQUEST_ID),
    )


def document(dialect: Dialect, error: ProxyError) -> Document:
    parsed: Document = json.loads(dialect.error_body(error, REQUEST_ID))
    return parsed


def raised_by_anthropic(error: ProxyError) -> anthropic.APIStatusError:
    """What the Anthropic SDK raises when it is answered with `error`."""
    transport = httpx2.MockTransport(lambda _: response(Dialect.ANTHROPIC, error))
    with (
        httpx2.Client(transport=transport) as http_client,
        anthropic.Anthropic(
            api_key="k", base_url="http://proxy.example", max_retries=0, http_client=http_client
        ) as client,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        client.models.list()
    return raised.value


def raised_by_openai(error: ProxyError) -> openai.APIStatusError:
    """What the OpenAI SDK raises when it is answered with `error`."""
    transport = httpx2.MockTransport(lambda _: response(Dialect.OPENAI, error))
    with (
        httpx2.Client(transport=transport) as http_client,
        openai.OpenAI(
            api_key="k",
            base_url="http://proxy.example/openai/v1",
            max_retries=0,
            http_client=http_client,
        ) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.models.list()
    return raised.value


class TestOfPath:
    @pytest.mark.parametrize(
        "path",
        ["/openai/v1/chat/completions", "/openai/v1/models", "/openai/", "/openai", "/openai/x/y"],
    )
    def test_openai(self, path: str) -> None:
        assert Dialect.of_path(path) is Dialect.OPENAI

    @pytest.mark.parametrize(
        "path",
        [
            "/v1/messages",
            "/v1/openai/x",
            "/",
            "",
            "*",
            "/elsewhere",
            "/openaix",
            "/openai-x/v1",
            "/OpenAI/v1",
            "/x/openai/",
        ],
    )
    def test_anthropic(self, path: str) -> None:
        assert Dialect.of_path(path) is Dialect.ANTHROPIC


class TestOwnErrors:
    def test_the_table_names_each(self) -> None:
        classes = {
            each
            for _, each in inspect.getmembers(errors, inspect.isclass)
            if issubclass(each, ProxyError)
        }
        assert {type(error) for error, _ in OWN_ERRORS} == classes

    @pytest.mark.parametrize(("error", "status"), OWN_ERRORS)
    def test_status(self, error: ProxyError, status: int) -> None:
        assert Dialect.ANTHROPIC.error_status(error) == status
        in_openai = 503 if isinstance(error, Overloaded) else status
        assert Dialect.OPENAI.error_status(error) == in_openai

    @pytest.mark.parametrize("error", [error for error, _ in OWN_ERRORS])
    def test_whose_fault_it_is_is_in_the_type(self, error: ProxyError) -> None:
        by_client = 400 <= error.status < 500 or isinstance(error, LoopDetected)
        assert isinstance(error, ClientError) is by_client
        by_upstream = error.status in {502, 504}
        assert isinstance(error, UpstreamError) is by_upstream

    def test_a_status_of_ones_own(self) -> None:
        assert Denied("m", status=402).status == 402
        assert Denied("m").status == 403

    def test_reads_as_its_message(self) -> None:
        assert str(NotFound(MESSAGE)) == MESSAGE


class TestAnthropic:
    @pytest.mark.parametrize("status", ANTHROPIC)
    def test_body(self, status: int) -> None:
        error_type, _ = ANTHROPIC[status]
        assert document(Dialect.ANTHROPIC, ProxyError(MESSAGE, status=status)) == {
            "type": "error",
            "error": {"type": error_type, "message": MESSAGE},
            "request_id": REQUEST_ID,
        }

    @pytest.mark.parametrize("status", ANTHROPIC)
    def test_the_sdk_raises(self, status: int) -> None:
        error_type, error_class = ANTHROPIC[status]
        raised = raised_by_anthropic(ProxyError(MESSAGE, status=status))
        assert isinstance(raised, error_class)
        assert raised.status_code == status
        assert raised.api_message == MESSAGE
        assert raised.type == error_type
        assert raised.request_id == REQUEST_ID

    @pytest.mark.parametrize(
        ("status", "error_type"),
        [
            (405, "invalid_request_error"),
            (418, "invalid_request_error"),
            (422, "invalid_request_error"),
            (508, "api_error"),
            (599, "api_error"),
        ],
    )
    def test_other_statuses_have_a_type_that_clients_know(
        self, status: int, error_type: str
    ) -> None:
        body = document(Dialect.ANTHROPIC, ProxyError(MESSAGE, status=status))
        assert body["error"]["type"] == error_type

    def test_too_many_requests_in_flight(self) -> None:
        raised = raised_by_anthropic(Overloaded(MESSAGE, retry_after=1))
        assert (raised.status_code, raised.type) == (529, "overloaded_error")
        assert raised.response.headers["retry-after"] == "1"

    def test_a_budget_that_is_used_up(self) -> None:
        error = Denied(
            MESSAGE,
            status=429,
            error_type="billing_error",
            retry_after=3600,
            headers={"X-Should-Retry": "false"},
        )
        raised = raised_by_anthropic(error)
        assert isinstance(raised, anthropic.RateLimitError)
        assert raised.type == "billing_error"
        assert raised.response.headers["x-should-retry"] == "false"
        assert raised.response.headers["retry-after"] == "3600"

    def test_code_and_param_are_the_other_dialects(self) -> None:
        error = InvalidRequest(MESSAGE, code="c", param="p")
        assert set(document(Dialect.ANTHROPIC, error)["error"]) == {"type", "message"}


class TestOpenAI:
    @pytest.mark.parametrize("status", OPENAI)
    def test_body(self, status: int) -> None:
        body = document(Dialect.OPENAI, ProxyError(MESSAGE, status=status, param="p", code="c"))
        error_type = body["error"].pop("type")
        assert isinstance(error_type, str)
        assert error_type in {OPENAI[status][0] or error_type}
        assert body == {"error": {"message": MESSAGE, "param": "p", "code": "c"}}

    def test_param_and_code_are_null_where_there_is_none(self) -> None:
        body = document(Dialect.OPENAI, InvalidRequest(MESSAGE))
        assert body["error"]["param"] is None
        assert body["error"]["code"] is None

    @pytest.mark.parametrize("status", OPENAI)
    def test_the_sdk_raises(self, status: int) -> None:
        error_type, error_class = OPENAI[status]
        raised = raised_by_openai(ProxyError(MESSAGE, status=status, param="p", code="c"))
        assert isinstance(raised, error_class)
        assert raised.status_code == status
        assert MESSAGE in raised.message
        assert raised.type
        assert raised.type == (error_type or raised.type)
        assert (raised.code, raised.param) == ("c", "p")
        assert raised.request_id == REQUEST_ID

    def test_a_wrong_credential(self) -> None:
        raised = raised_by_openai(AuthenticationFailed(MESSAGE))
        assert isinstance(raised, openai.AuthenticationError)
        assert (raised.type, raised.code) == ("invalid_request_error", "invalid_api_key")

    def test_a_model_that_is_not_there(self) -> None:
        raised = raised_by_openai(NotFound(MESSAGE, code="model_not_found", param="model"))
        assert isinstance(raised, openai.NotFoundError)
        assert (raised.code, raised.param) == ("model_not_found", "model")

    def test_a_budget_that_is_used_up(self) -> None:
        error = Denied(MESSAGE, status=429, error_type="insufficient_quota", retry_after=60)
        raised = raised_by_openai(error)
        assert isinstance(raised, openai.RateLimitError)
        assert raised.type == "insufficient_quota"
        assert raised.response.headers["retry-after"] == "60"

    def test_too_many_requests_in_flight(self) -> None:
        raised = raised_by_openai(Overloaded(MESSAGE, retry_after=1))
        assert isinstance(raised, openai.InternalServerError)
        assert raised.status_code == 503
        assert raised.response.headers["retry-after"] == "1"


both = pytest.mark.parametrize("dialect", Dialect)


class TestHeaders:
    @both
    @pytest.mark.parametrize("error", [error for error, _ in OWN_ERRORS])
    def test_say_that_it_is_json(self, dialect: Dialect, error: ProxyError) -> None:
        assert response(dialect, error).headers["content-type"] == "application/json"
        assert document(dialect, error)

    def test_name_the_request(self) -> None:
        error = NotFound(MESSAGE)
        assert response(Dialect.ANTHROPIC, error).headers["request-id"] == REQUEST_ID
        assert response(Dialect.OPENAI, error).headers["x-request-id"] == REQUEST_ID

    @both
    def test_of_a_401_tell_the_scheme(self, dialect: Dialect) -> None:
        headers = response(dialect, AuthenticationFailed(MESSAGE)).headers
        assert headers["www-authenticate"] == "Bearer"

    @both
    def test_of_others_do_not(self, dialect: Dialect) -> None:
        assert "www-authenticate" not in response(dialect, Denied(MESSAGE)).headers

    @both
    @pytest.mark.parametrize(
        ("seconds", "header"), [(None, None), (0, "0"), (1, "1"), (1.2, "2"), (0.001, "1")]
    )
    def test_retry_after_is_in_whole_seconds_and_never_too_early(
        self, dialect: Dialect, seconds: float | None, header: str | None
    ) -> None:
        headers = response(dialect, Overloaded(MESSAGE, retry_after=seconds)).headers
        assert headers.get("retry-after") == header

    @both
    def test_of_ones_own_are_added(self, dialect: Dialect) -> None:
        error = Denied(MESSAGE, headers={"X-Should-Retry": "false"})
        assert response(dialect, error).headers["x-should-retry"] == "false"


class TestStreamError:
    """An error in a stream whose head has gone out; how the SDKs take it: see test_sse."""

    def test_anthropics_is_a_named_event(self) -> None:
        event = Dialect.ANTHROPIC.stream_error(UpstreamClosed(MESSAGE), REQUEST_ID)
        name, data, *rest = event.split(b"\n")
        assert name == b"event: error"
        assert json.loads(data.removeprefix(b"data: ")) == {
            "type": "error",
            "error": {"type": "api_error", "message": MESSAGE},
            "request_id": REQUEST_ID,
        }
        assert rest == [b"", b""]

    def test_openais_is_data_without_a_name(self) -> None:
        event = Dialect.OPENAI.stream_error(UpstreamClosed(MESSAGE), REQUEST_ID)
        data, *rest = event.split(b"\n")
        body = json.loads(data.removeprefix(b"data: "))
        assert set(body) == {"error"}
        assert body["error"]["message"] == MESSAGE
        assert rest == [b"", b""]

    def test_a_type_of_ones_own(self) -> None:
        error = UpstreamTimeout(MESSAGE, error_type="api_error")
        event = Dialect.ANTHROPIC.stream_error(error, REQUEST_ID)
        assert b'"type":"api_error"' in event
        assert b"timeout_error" not in event

    @both
    def test_is_one_event_whatever_its_message(self, dialect: Dialect) -> None:
        error = UpstreamClosed("a\nb\rc\r\n\r\nd\n\ne: f\x85\u2028")
        event = dialect.stream_error(error, REQUEST_ID)
        assert b"\r" not in event
        assert event.count(b"\n\n") == 1
        assert event.endswith(b"\n\n")


@both
def test_a_message_may_hold_half_a_character(dialect: Dialect) -> None:
    """JSON can hold lone surrogates, and so can what an error repeats of a request."""
    name = json.loads(r'"\ud83d"')
    error = InvalidRequest(f"There is no model {name}.")
    assert document(dialect, error)["error"]["message"] == f"There is no model {name}."
    assert dialect.stream_error(error, REQUEST_ID)


@both
def test_line_separators_in_an_error_are_escaped(dialect: Dialect) -> None:
    error = InvalidRequest("a\x85é\u2028b\u2029")
    for written in (
        dialect.error_body(error, REQUEST_ID),
        dialect.stream_error(error, REQUEST_ID).partition(b"data: ")[2].rstrip(),
    ):
        assert len(written.decode().splitlines()) == 1
        assert json.loads(written)["error"]["message"] == error.message
