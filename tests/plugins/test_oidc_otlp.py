"""The plugin oidc: the resource attributes of OTLP requests, read with OpenTelemetry's library."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, Parse  # type: ignore[import-untyped]  # it has no annotations
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tornadoproxy_oidc.otlp import MAX_ADDED, stamp_json, stamp_protobuf
from tornadoproxy_oidc.telemetry import ATTRIBUTES

WHO = {"user.id": "ada ü", "user.groups": "lab," * 50}
KINDS: dict[str, Any] = {
    "resourceMetrics": ExportMetricsServiceRequest,
    "resourceLogs": ExportLogsServiceRequest,
    "resourceSpans": ExportTraceServiceRequest,
}
POINT = {"name": "m", "gauge": {"dataPoints": [{"asDouble": 0.1}]}}
RECORD = {"body": {"stringValue": "ü"}, "timeUnixNano": "17"}
SCOPES: dict[str, dict[str, Any]] = {
    "resourceMetrics": {"scopeMetrics": [{"metrics": [POINT]}]},
    "resourceLogs": {"scopeLogs": [{"logRecords": [RECORD]}]},
    "resourceSpans": {"scopeSpans": [{"spans": [{"name": "s", "kind": 3}]}]},
}
TEXT = st.text(max_size=150)
ATTRIBUTE = st.builds(
    lambda key, value: {"key": key, "value": value},
    st.sampled_from([*ATTRIBUTES, "host.arch"]) | TEXT,
    st.builds(lambda text: {"stringValue": text}, TEXT) | st.just({"arrayValue": {"values": [{}]}}),
)
NOTHING: dict[str, Any] = {}
RESOURCE = st.just(NOTHING) | st.builds(
    lambda attributes: {"resource": {"attributes": attributes, "droppedAttributesCount": 3}},
    st.lists(ATTRIBUTE, max_size=4),
)


def stamped(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what the resources of a request should become."""
    expected: dict[str, Any] = json.loads(json.dumps(document))
    for each in expected[name]:
        resource = each.setdefault("resource", {})
        resource["attributes"] = [
            *(given for given in resource.get("attributes", ()) if given["key"] not in ATTRIBUTES),
            *({"key": key, "value": {"stringValue": text}} for key, text in WHO.items()),
        ]
    return expected


@given(name=st.sampled_from([*KINDS]), resources=st.lists(RESOURCE, max_size=3))
def test_each_resource_says_who_sent_it(name: str, resources: list[dict[str, Any]]) -> None:
    kind = KINDS[name]
    document = {name: [{**each, **SCOPES[name], "schemaUrl": "x"} for each in resources]}
    expected = Parse(json.dumps(stamped(document, name)), kind())
    given_message = Parse(json.dumps(document), kind())
    body = stamp_protobuf(given_message.SerializeToString(), ATTRIBUTES, WHO)
    assert kind.FromString(body) == expected
    in_json = stamp_json(json.dumps(document).encode(), ATTRIBUTES, WHO)
    assert Parse(in_json, kind()) == expected
    assert json.loads(in_json) == stamped(document, name)


def test_resource_in_pieces_is_one() -> None:
    """A parser merges a message that is there several times; an attribute must not hide there."""
    forged = ExportLogsServiceRequest()
    logs = forged.resource_logs.add()
    logs.resource.attributes.add(key="user.id").value.string_value = "root"
    twice = logs.SerializeToString() * 2
    body = b"\x0a" + bytes([len(twice)]) + twice
    assert len(ExportLogsServiceRequest.FromString(body).resource_logs[0].resource.attributes) == 2
    found = ExportLogsServiceRequest.FromString(
        stamp_protobuf(body, ATTRIBUTES, {"user.id": "ada"})
    )
    (kept,) = MessageToDict(found)["resourceLogs"]
    assert kept["resource"]["attributes"] == [{"key": "user.id", "value": {"stringValue": "ada"}}]


def test_key_in_pieces_is_the_last() -> None:
    key = b"\x0a\x01x\x0a\x07user.id"
    attribute = b"\x0a" + bytes([len(key)]) + key
    resource = b"\x0a" + bytes([len(attribute)]) + attribute
    body = b"\x0a" + bytes([len(resource)]) + resource
    (logs,) = ExportLogsServiceRequest.FromString(body).resource_logs
    assert logs.resource.attributes[0].key == "user.id"
    assert b"user.id" not in stamp_protobuf(body, ATTRIBUTES, {})


@pytest.mark.parametrize("name", KINDS)
def test_names_of_protobuf_in_json_are_stamped_too(name: str) -> None:
    """Parsers accept them as well; an attribute must not hide there."""
    forged = [{"key": "user.id", "value": {"stringValue": "root"}}]
    other = re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)
    document = {other: [{"resource": {"attributes": forged}}]}
    assert Parse(json.dumps(document), KINDS[name]()) != KINDS[name]()
    found = Parse(stamp_json(json.dumps(document).encode(), ATTRIBUTES, WHO), KINDS[name]())
    assert MessageToDict(found) == stamped({name: document[other]}, name)


def test_request_cannot_multiply_the_attributes() -> None:
    """Two bytes are a resource, of which each gets all attributes."""
    groups = {"user.groups": "g" * 1000}
    for stamp, body, most in (
        (stamp_protobuf, b"\x0a\x00" * 1000, b"\x0a\x00" * 2000),
        (
            stamp_json,
            b'{"resourceLogs":[%s{}]}' % (b"{}," * 800),
            b'{"resourceLogs":[%s{}]}' % (b"{}," * 2000),
        ),
    ):
        assert len(stamp(body, ATTRIBUTES, groups)) < len(body) + MAX_ADDED
        with pytest.raises(ValueError, match="too many resources"):
            stamp(most, ATTRIBUTES, groups)


@given(st.binary(max_size=60))
def test_bytes_are_stamped_or_refused_as_the_library_does(body: bytes) -> None:
    try:
        stamped_body = stamp_protobuf(body, ATTRIBUTES, WHO)
    except ValueError:
        return
    try:
        before = ExportLogsServiceRequest.FromString(body)
    except Exception:
        return
    after = ExportLogsServiceRequest.FromString(stamped_body)
    assert len(after.resource_logs) == len(before.resource_logs)
    for logs in after.resource_logs:
        assert [each.key for each in logs.resource.attributes][-2:] == list(WHO)


@pytest.mark.parametrize(
    "body",
    [
        *(b"\x0a", b"\x0a\x05ab", b"\x08\x01", b"\x00\x00", b"\x80" * 11, b"\x0b\x0c", b"\x11abc"),
        *(b"\x0a\x02\x08\x01", b"\x0a\x04\x0a\x02\x08\x01", b"\x15\x01"),
        # the last 32 bits of this field's number are 1, which some parsers look at alone
        b"\x8a\x80\x80\x80\x80\x01\x00",
    ],
)
def test_broken_protobuf_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="no OTLP request"):
        stamp_protobuf(body, ATTRIBUTES, WHO)


@pytest.mark.parametrize(
    "body",
    [
        *(b"[]", b"5", b"", b"\xff", b'{"resourceLogs": 5}', b'{"resourceLogs": [5]}'),
        *(b'{"resourceLogs": [{"resource": []}]}', b"[" * 100_000, b'{"x": NaN}', b'{"x": 1e999}'),
        b'{"resourceLogs": [{"resource": {"attributes": ["user.id"]}}]}',
        b'{"resourceLogs": [{"resource": {"attributes": {"a": 1}}}]}',
        b'{"resourceLogs": [{"resource": {"attributes": [{"key": []}]}}]}',
    ],
)
def test_broken_json_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # each in its own words
        stamp_json(body, frozenset(ATTRIBUTES), WHO)
