"""pytest fixtures that run the real proxy in front of a scripted upstream, on real sockets.

They are for the tests of this project and of plugins. The topmost ``conftest.py`` enables them::

    pytest_plugins = ["tornadoproxy.testing"]

Then every ``async def`` test runs in an event loop of its own, and requests fixtures by name::

    async def test_hello(anthropic_client, upstream, records):
        message = await anthropic_client.messages.create(
            model="claude-sonnet-5-5", max_tokens=100, messages=[{"role": "user", "content": "Hi"}]
        )
        assert message.content[0].text.endswith("Hi")
        assert upstream.requests[0].header("x-api-key") == TEST_UPSTREAM_KEY
        assert (await records.finished()).outcome == "completed"

``pip install tornadoproxy[test]`` installs what they need. The two SDKs are needed only for the
fixtures ``anthropic_client`` and ``openai_client``.
"""

from tornadoproxy.fakes.anthropic_api import ScriptedUpstream, error_response
from tornadoproxy.fakes.anthropic_messages import (
    Document,
    event,
    message_document,
    message_events,
)
from tornadoproxy.fakes.exchange import ReceivedRequest, UpstreamExchange
from tornadoproxy.fakes.http_message import ProtocolError, request_bytes, response_head
from tornadoproxy.fakes.http_server import ScriptedServer
from tornadoproxy.fakes.raw_client import RawConnection, RawResponse, Truncated
from tornadoproxy.fakes.responses import (
    Response,
    bytes_response,
    json_response,
    raw_response,
    silent_response,
    sse_response,
)
from tornadoproxy.testing.clients import Ask, OpenRaw, clean_environment
from tornadoproxy.testing.proxies import (
    TEST_TOKEN,
    TEST_UPSTREAM_KEY,
    Proxy,
    Records,
    StartProxy,
)
from tornadoproxy.testing.records import request_record

__all__ = [
    "TEST_TOKEN",
    "TEST_UPSTREAM_KEY",
    "Ask",
    "Document",
    "OpenRaw",
    "ProtocolError",
    "Proxy",
    "RawConnection",
    "RawResponse",
    "ReceivedRequest",
    "Records",
    "Response",
    "ScriptedServer",
    "ScriptedUpstream",
    "StartProxy",
    "Truncated",
    "UpstreamExchange",
    "bytes_response",
    "clean_environment",
    "error_response",
    "event",
    "json_response",
    "message_document",
    "message_events",
    "raw_response",
    "request_bytes",
    "request_record",
    "response_head",
    "silent_response",
    "sse_response",
]

# the fixtures
pytest_plugins = (
    "tornadoproxy.testing.loop",
    "tornadoproxy.testing.proxies",
    "tornadoproxy.testing.clients",
)

# the earlier names, until 0.2
Answer = Response
bytes_answer = bytes_response
error_answer = error_response
json_answer = json_response
raw_answer = raw_response
silent_answer = silent_response
sse_answer = sse_response
