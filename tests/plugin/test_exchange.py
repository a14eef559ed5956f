"""A request's head, the credentials in it, and the record that it ends in."""

from __future__ import annotations

import time

import pytest
from tornado.httputil import HTTPHeaders

from tornadoproxy import AuthenticationFailed, Identity, IncomingRequest, RequestRecord
from tornadoproxy.handlers.exchange import Exchange
from tornadoproxy.plugin.request import Outcome
from tornadoproxy.protocol.dialects import Dialect
from tornadoproxy.protocol.usage import Usage


def incoming(*lines: tuple[str, str], path: str = "/v1/messages") -> IncomingRequest:
    headers = HTTPHeaders()
    for name, value in lines:
        headers.add(name, value)
    return IncomingRequest(
        method="POST",
        path=path,
        headers=headers,
        remote_ip="192.0.2.7",
        dialect=Dialect.of_path(path),
    )


def on_the_wire(head: bytes) -> IncomingRequest:
    """The request whose header lines are `head`, parsed as the server parses them."""
    headers = HTTPHeaders.parse(head.decode("latin-1"))
    return IncomingRequest("POST", "/v1/messages", headers, "192.0.2.7", Dialect.ANTHROPIC)


def candidates(*lines: tuple[str, str]) -> list[bytes]:
    return [secret.reveal() for secret in incoming(*lines).candidates()]


class TestCandidates:
    def test_none(self) -> None:
        assert candidates() == []
        assert candidates(("Content-Type", "application/json"), ("Cookie", "token=T")) == []

    @pytest.mark.parametrize("name", ["x-api-key", "X-Api-Key", "X-API-KEY"])
    def test_an_api_key(self, name: str) -> None:
        assert candidates((name, "T")) == [b"T"]

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
    def test_a_bearer_token_whatever_the_case_of_its_scheme(self, scheme: str) -> None:
        assert candidates(("Authorization", f"{scheme} T")) == [b"T"]

    @pytest.mark.parametrize("path", ["/v1/messages", "/openai/v1/models", "/elsewhere"])
    def test_both_forms_in_both_dialects(self, path: str) -> None:
        for line in [("x-api-key", "T"), ("Authorization", "Bearer T")]:
            assert [secret.reveal() for secret in incoming(line, path=path).candidates()] == [b"T"]

    def test_an_api_key_takes_precedence(self) -> None:
        lines = [("Authorization", "Bearer right"), ("x-api-key", "wrong")]
        assert candidates(*lines) == [b"wrong"]
        assert candidates(*reversed(lines)) == [b"wrong"]

    def test_an_api_key_takes_precedence_over_lines_that_differ_too(self) -> None:
        assert candidates(
            ("Authorization", "Bearer A"), ("Authorization", "Bearer B"), ("x-api-key", "T")
        ) == [b"T"]

    @pytest.mark.parametrize("empty", [b"", b" ", b"\t", b" \t  "])
    def test_an_empty_api_key_counts_as_absent(self, empty: bytes) -> None:
        bearer = b"Authorization: Bearer T\r\n"
        key = b"x-api-key:" + empty + b"\r\n"
        assert on_the_wire(key).candidates() == ()
        (secret,) = on_the_wire(key + bearer).candidates()
        assert secret.reveal() == b"T"
        (secret,) = on_the_wire(key + b"x-api-key: U\r\n" + bearer).candidates()
        assert secret.reveal() == b"U"

    @pytest.mark.parametrize(
        "head",
        [
            b"x-api-key:T\r\n",
            b"x-api-key: \t T \t \r\n",
            b"Authorization:Bearer T\r\n",
            b"Authorization: \t Bearer T \t \r\n",
            b"Authorization: Bearer    T\r\n",
            b"Authorization: Bearer \t T\r\n",
        ],
    )
    def test_blanks_around_a_token_are_trimmed(self, head: bytes) -> None:
        (secret,) = on_the_wire(head).candidates()
        assert secret.reveal() == b"T"

    @pytest.mark.parametrize(
        "head", [b"x-api-key: a b\tc\r\n", b"Authorization: Bearer a b\tc\r\n"]
    )
    def test_blanks_within_a_token_belong_to_it(self, head: bytes) -> None:
        (secret,) = on_the_wire(head).candidates()
        assert secret.reveal() == b"a b\tc"

    def test_several_api_keys_are_all_candidates(self) -> None:
        assert candidates(("x-api-key", "dummy"), ("X-API-Key", "T")) == [b"dummy", b"T"]

    def test_at_most_eight_api_keys_are_looked_at(self) -> None:
        lines = [("x-api-key", str(number)) for number in range(20)]
        assert candidates(*lines) == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7"]

    def test_a_comma_is_part_of_a_token(self) -> None:
        assert candidates(("x-api-key", "a, b,c")) == [b"a, b,c"]
        assert candidates(("Authorization", "Bearer a, b,c")) == [b"a, b,c"]
        assert candidates(("x-api-key", "a,"), ("x-api-key", ",b")) == [b"a,", b",b"]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("Bearer A", "Bearer B"),
            ("Bearer A", "Basic QTpC"),
            ("Bearer A", "Bearer A B"),
            ("Bearer A", "Bearer"),
        ],
    )
    def test_authorization_lines_that_differ_are_refused(self, one: str, other: str) -> None:
        for lines in ([one, other], [other, one], [one, one, other]):
            with pytest.raises(AuthenticationFailed) as raised:
                candidates(*(("Authorization", line) for line in lines))
            assert raised.value.status == 401
            assert "Authorization" in raised.value.message

    def test_authorization_lines_that_are_equal_are_one(self) -> None:
        assert candidates(*[("Authorization", "Bearer T")] * 3) == [b"T"]

    @pytest.mark.parametrize(
        "value",
        ["Basic VDpU", "T", "Token T", "BearerT", "Bearer", "Bearer:T", "Digest username=T", ""],
    )
    def test_other_schemes_hold_no_candidate(self, value: str) -> None:
        assert candidates(("Authorization", value)) == []

    def test_another_scheme_does_not_hide_an_api_key(self) -> None:
        assert candidates(("Authorization", "Basic VDpU"), ("x-api-key", "T")) == [b"T"]

    @pytest.mark.parametrize("token", ["clé", "voilà", "Ångström Å", "à", "🔑", "…", "ключ", "鍵"])
    def test_a_token_is_its_bytes(self, token: str) -> None:
        """Some of these end in bytes that Latin-1 takes for blanks: 85 and A0."""
        for line in (b"x-api-key: %b\r\n", b"Authorization: Bearer %b\r\n"):
            (secret,) = on_the_wire(line % token.encode()).candidates()
            assert secret.reveal() == token.encode()

    @pytest.mark.parametrize("token", [b"\xff\xfe", b"\xa0", b"\x85T\x85", b"cl\xe9", b"\xa0T\xa0"])
    def test_a_token_need_not_be_text(self, token: bytes) -> None:
        for line in (b"x-api-key: %b\r\n", b"Authorization: Bearer %b\r\n"):
            (secret,) = on_the_wire(line % token).candidates()
            assert secret.reveal() == token

    def test_the_request_is_left_as_it_is(self) -> None:
        request = incoming(*[("x-api-key", str(number)) for number in range(10)])
        before = list(request.headers.get_all())
        request.candidates()
        assert list(request.headers.get_all()) == before


BEARER = ("Authorization", "Bearer sk-canary")


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([], "No credential was sent: send a key of yours, as "),
        ([("x-api-key", "")], "No credential was sent"),
        (
            [("x-api-key", "sk-canary")],
            "The credential sent is not known here: send a key of yours.",
        ),
        ([BEARER], "The credential sent is not known here"),
        ([("Authorization", "Basic sk-canary")], "The Authorization header holds no Bearer token"),
        ([("Authorization", "sk-canary")], "The Authorization header holds no Bearer token"),
        ([BEARER, ("Authorization", "Bearer b")], "There are several Authorization headers"),
    ],
)
def test_authentication_failed_tells_what_was_sent(lines: list[tuple[str, str]], told: str) -> None:
    with pytest.raises(AuthenticationFailed) as caught:
        raise incoming(*lines).authentication_failed("a key of yours")
    message = caught.value.message
    assert message.startswith(told)
    assert "sk-canary" not in message
    assert "x-api-key" not in message.lower()


class TestIncomingRequest:
    def test_shows_no_header(self) -> None:
        request = incoming(("x-api-key", "sk-canary"), ("Cookie", "sk-canary"))
        for shown in (repr(request), repr([*request.__rich_repr__()])):
            assert "sk-canary" not in shown
            assert "/v1/messages" in shown

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError, match="immutable"):
            incoming().path = "/v1/other"  # type: ignore[misc]  # refused on purpose


class TestIdentity:
    def test_is_somebody_in_no_group_unless_said_otherwise(self) -> None:
        identity = Identity("alice")
        assert (identity.principal, identity.anonymous, identity.groups) == ("alice", False, ())

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(AttributeError, match="immutable"):
            Identity("alice").principal = "root"  # type: ignore[misc]  # refused on purpose


class TestRecord:
    def test_of_a_request_that_nothing_came_of(self) -> None:
        before = time.time()
        exchange = Exchange(incoming(path="/openai/v1/models"), "req_1")
        record = exchange.record(Outcome.DENIED, None)
        after = time.time()
        assert before <= record.time <= after
        assert 0 <= record.duration <= after - before + 1
        assert record == RequestRecord(
            time=record.time,
            request_id="req_1",
            principal=None,
            groups=(),
            method="POST",
            route="/openai/v1/models",
            dialect="openai",
            remote_ip="192.0.2.7",
            status=None,
            outcome=Outcome.DENIED,
            error=None,
            model=None,
            usage=Usage(None, None, None, None, None, None, None, partial=False),
            cost=None,
            stop_reason=None,
            bytes_in=0,
            bytes_out=0,
            duration=record.duration,
            time_to_first_byte=None,
            time_to_first_token=None,
            upstream_time=None,
            session_id=None,
            agent_id=None,
            parent_agent_id=None,
            traceparent=None,
            tracestate=None,
        )

    def test_of_a_request_that_was_answered(self) -> None:
        request = incoming(
            ("x-claude-code-session-id", "session"),
            ("x-claude-code-agent-id", "agent"),
            ("x-claude-code-parent-agent-id", "parent"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "vendor=1"),
            ("x-api-key", "sk-canary"),
        )
        exchange = Exchange(request, "req_ours")
        exchange.request_id = "req_upstream"
        exchange.identity = Identity("alice", groups=("staff",))
        exchange.status = 200
        exchange.model = "claude-sonnet-5-5"
        exchange.usage = Usage(1, 2, 3, 4, 5, 6, 7, partial=True)
        exchange.stop_reason = "refusal"
        exchange.bytes_in = 10
        exchange.bytes_out = 20
        record = exchange.record(Outcome.COMPLETED, 12_345)
        assert record == RequestRecord(
            time=record.time,
            request_id="req_upstream",
            principal="alice",
            groups=("staff",),
            method="POST",
            route="/v1/messages",
            dialect="anthropic",
            remote_ip="192.0.2.7",
            status=200,
            outcome=Outcome.COMPLETED,
            error=None,
            model="claude-sonnet-5-5",
            usage=Usage(1, 2, 3, 4, 5, 6, 7, partial=True),
            cost=12_345,
            stop_reason="refusal",
            bytes_in=10,
            bytes_out=20,
            duration=record.duration,
            time_to_first_byte=None,
            time_to_first_token=None,
            upstream_time=None,
            session_id="session",
            agent_id="agent",
            parent_agent_id="parent",
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            tracestate="vendor=1",
        )
        assert "sk-canary" not in repr(record)

    def test_its_times_are_differences_of_monotonic_ones(self) -> None:
        exchange = Exchange(incoming(), "req_1")
        exchange.started_at = 100.0
        exchange.upstream_started_at = 101.0
        exchange.first_byte_at = 104.0
        exchange.first_token_at = 105.0
        exchange.upstream_ended_at = 109.0
        before = time.monotonic()
        record = exchange.record(Outcome.COMPLETED, None)
        assert record.time_to_first_byte == 4.0
        assert record.time_to_first_token == 5.0
        assert record.upstream_time == 8.0
        assert before - 100.0 <= record.duration <= time.monotonic() - 100.0

    def test_the_upstream_time_of_an_answer_that_did_not_end_ends_now(self) -> None:
        exchange = Exchange(incoming(), "req_1")
        exchange.upstream_started_at = 100.0
        before = time.monotonic()
        record = exchange.record(Outcome.ABANDONED, None)
        assert record.upstream_time is not None
        assert before - 100.0 <= record.upstream_time <= time.monotonic() - 100.0
        assert record.time_to_first_byte is None

    def test_keeps_the_error(self) -> None:
        exchange = Exchange(incoming(), "req_1")
        exchange.error = "UpstreamClosed: it left"
        record = exchange.record(Outcome.FAILED, None)
        assert record.error == "UpstreamClosed: it left"
        assert record.outcome == "failed"

    def test_is_frozen(self) -> None:
        record = Exchange(incoming(), "req_1").record(Outcome.COMPLETED, None)
        with pytest.raises(AttributeError, match="immutable"):
            record.status = 500  # type: ignore[misc]  # refused on purpose

    def test_the_outcomes_are_the_documented_words(self) -> None:
        words = ["completed", "denied", "failed", "abandoned", "drained"]
        assert [str(outcome) for outcome in Outcome] == words
