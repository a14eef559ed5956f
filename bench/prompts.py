"""The requests that are sent, as Anthropic's and OpenAI's Python clients send them."""

from __future__ import annotations

import json

TOKEN = "sk-bench-what-clients-present"  # noqa: S105 - opens nothing
UPSTREAM_KEY = "sk-bench-what-the-upstream-gets"
MODEL = "claude-sonnet-5-5"

_SYSTEM = (
    "You are a careful assistant. Answer in plain words, say what you do not know, and keep to "
    "what was asked."
)
_STAINLESS = (
    "X-Stainless-Arch: x64\r\n"
    "X-Stainless-Lang: python\r\n"
    "X-Stainless-OS: Linux\r\n"
    "X-Stainless-Package-Version: {version}\r\n"
    "X-Stainless-Runtime: CPython\r\n"
    "X-Stainless-Runtime-Version: 3.13.0\r\n"
    "X-Stainless-Async: false\r\n"
    "x-stainless-retry-count: 0\r\n"
    "x-stainless-read-timeout: 600\r\n"
)
_OPENAI = "User-Agent: OpenAI/Python 3.54.0\r\n" + _STAINLESS.format(version="3.54.0")


def message(path: str, prompt: str, *, stream: bool = False, token: str = TOKEN) -> bytes:
    """A request to Anthropic's messages at `path`."""
    document = {
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": prompt}],
        "model": MODEL,
        "system": _SYSTEM,
    }
    headers = (
        "User-Agent: Anthropic/Python 2.12.0\r\n"
        + _STAINLESS.format(version="2.12.0")
        + "anthropic-version: 2023-06-01\r\n"
    )
    return _request(path, headers, document, token, stream=stream)


def chat(path: str, prompt: str, *, stream: bool = False, token: str = TOKEN) -> bytes:
    """A request to OpenAI's chat completions at `path`."""
    document = {
        "messages": [
            {"role": "system", "content": _SYSTEM},
            {"role": "user", "content": prompt},
        ],
        "model": MODEL,
        "max_completion_tokens": 1024,
    }
    return _request(path, _OPENAI, document, token, stream=stream)


def response(path: str, prompt: str, *, stream: bool = False, token: str = TOKEN) -> bytes:
    """A request to OpenAI's Responses API at `path`."""
    document = {
        "input": prompt,
        "instructions": _SYSTEM,
        "model": MODEL,
        "max_output_tokens": 1024,
    }
    return _request(path, _OPENAI, document, token, stream=stream)


def _request(
    path: str, headers: str, document: dict[str, object], token: str, *, stream: bool
) -> bytes:
    if stream:
        document["stream"] = True
    body = json.dumps(document, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\n"
        "Host: 127.0.0.1\r\n"
        "Accept-Encoding: gzip, deflate\r\n"
        "Connection: keep-alive\r\n"
        "Accept: application/json\r\n"
        "Content-Type: application/json\r\n"
        f"Authorization: Bearer {token}\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
