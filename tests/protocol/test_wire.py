"""Errors of clouds in the Anthropic API's form."""

from __future__ import annotations

import json

import pytest

from tornadoproxy import ErrorDecoder, ResponseHead

OWN = b'{"error": {"message": "prompt is too long", "type": "x"}, "type": "error", "more": 1}'


def read(status: int, *pieces: bytes) -> bytes:
    fields = [("content-length", "9"), ("Request-Id", "req_1"), ("content-type", "text/html")]
    head, decoder = ErrorDecoder.of(ResponseHead(status, "", [*fields, ("retry-after", "3")]))
    assert head.status == status
    expected = [("Request-Id", "req_1"), ("retry-after", "3"), ("Content-Type", "application/json")]
    assert head.fields == expected
    assert [decoder.feed(piece) for piece in pieces] == [b""] * len(pieces)
    return decoder.end()


def test_error_in_the_form_of_the_api_stays_as_it_is() -> None:
    assert read(400, OWN[:9], OWN[9:]) == OWN


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (
            429,
            b'{"error":{"code":429,"message":"Quota","status":"X"}}',
            "rate_limit_error",
            "Quota",
        ),
        (404, b'[{"error":{"code":404,"message":"No model"}}]', "not_found_error", "No model"),
        (401, b'{"statusCode":401,"message":"Unauthorized"}', "authentication_error", "Unauth"),
        (403, b'{"Message":"Not you"}', "permission_error", "Not you"),
        (400, b'{"error":"invalid_grant"}', "invalid_request_error", "invalid_grant"),
        (503, b'{"error":{"message":""}}', "overloaded_error", "status 503"),
        (502, b"<html>Bad gateway</html>", "api_error", "status 502"),
        (413, b"<html>Too large</html>", "request_too_large", "Request exceeds the maximum size"),
        (500, b"", "api_error", "status 500"),
        (500, b"[" * 100_000, "api_error", "status 500"),
        (500, b'{"error":{"message":"\\ud800 half"}}', "api_error", "half"),
    ],
)
def test_other_error_gets_the_form_of_the_api(
    status: int, body: bytes, kind: str, message: str
) -> None:
    document = json.loads(read(status, *(body[at : at + 7] for at in range(0, len(body), 7))))
    assert (document["type"], document["request_id"]) == ("error", "req_1")
    assert document["error"]["type"] == kind
    assert message in document["error"]["message"]


def test_long_error_takes_bounded_memory() -> None:
    pieces = [b"x" * 65_536] * 64
    assert b"status 502" in read(502, *pieces)
