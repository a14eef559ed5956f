"""The README and the pages for users and operators, compared with the code and run."""

from __future__ import annotations

import ast
import asyncio
import errno
import importlib.util
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from documents import PAGES, README, ROOT, block_with, blocks, first_cells
from tornadoproxy_access_log import text_line
from tornadoproxy_prices.shipped import SHIPPED

from tornadoproxy import Dialect, Outcome, Usage, errors
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.protocol.headers import forwarded, request_head, request_headers, response_headers
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    Records,
    clean_environment,
    message_document,
    request_record,
)

ALL = "\n".join([README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), *PAGES.values()])
QUOTED = re.findall(r"^<!-- (\S+/\S+) -->\n```\w*\n(.*?)^```$", ALL, re.DOTALL | re.MULTILINE)

SCREENSHOTS = ROOT / "docs" / "screenshots"

# -- files that pages quote, name and draw


def test_readme_is_at_most_ten_kilobytes() -> None:
    assert len(README.encode()) <= 10_000


@pytest.mark.parametrize(("path", "block"), QUOTED, ids=[path for path, _ in QUOTED])
def test_quotation_is_in_its_file(path: str, block: str) -> None:
    assert block.strip()
    assert block in (ROOT / path).read_text(encoding="utf-8")


def test_every_deployment_file_is_named() -> None:
    files = [path for path in (ROOT / "deploy").rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if path.relative_to(ROOT).as_posix() not in ALL] == []


def test_ci_runs_the_readme_test_command() -> None:
    command = block_with(README, "bash", "-m pytest").strip()
    assert "\n" not in command
    assert command in (ROOT / ".ci" / "run").read_text()


def test_picture_shows_every_node_of_its_source() -> None:
    source = (ROOT / "docs" / "request.dot").read_text()
    picture = (ROOT / "docs" / "request.svg").read_text()
    labels = re.findall(r'label="([^"]+)"', source)
    assert len(labels) > 6
    for line in (line for label in labels for line in label.split(r"\n")):
        assert f">{line}</text>" in picture, line


@pytest.mark.skipif(not SCREENSHOTS.exists(), reason="the sdist has no screenshots")
def test_each_screenshot_is_shown_and_small() -> None:
    for path in SCREENSHOTS.iterdir():
        assert path.relative_to(ROOT / "docs").as_posix() in PAGES["console"]
        assert path.stat().st_size < 150_000


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        if "screenshots/" in link and not SCREENSHOTS.exists():  # as in the sdist
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# -- tables and messages


def test_generated_parts_are_what_the_code_generates() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for path, text in generate["pages"]().items():
        assert path.read_text() == text, "run: python docs/generate.py"


def test_access_log_line_is_what_the_plugin_writes() -> None:
    record = request_record(
        time=datetime(2026, 11, 24, 10, 35, 57, 817_000, UTC).timestamp(),
        request_id="req_01af9a8cf1136d6e737a445c",
        principal="token",
        usage=Usage(input_tokens=5, output_tokens=11),
        cost=120_000,
        bytes_in=102,
        bytes_out=2122,
        duration=4.811,
        time_to_first_byte=0.312,
        upstream_time=4.809,
    )
    line = block_with(PAGES["deploy"], "text", "POST /v1/messages")
    assert line == text_line(record).decode() + "\n"
    assert {*Outcome} <= {*first_cells(PAGES["deploy"])}


def test_quoted_messages_are_in_the_code() -> None:
    page, _, _ = PAGES["troubleshooting"].partition("## Usage and cost")
    quotes = re.findall(r"^\| `([^`]+)` \| ", page, re.MULTILINE)
    paths = [*(ROOT / "tornadoproxy").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    # parsing takes long, and only a file with all words of a quote can say it
    words = [re.findall(r"\w+", quote) for quote in quotes]
    sources = [
        text
        for text in (path.read_text() for path in paths)
        if any(all(word in text for word in each) for each in words)
    ]
    nodes = (node for text in sources for node in ast.walk(ast.parse(text)))
    texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
    said = "\n".join([*texts, os.strerror(errno.EADDRINUSE)])
    assert len(quotes) > 10
    assert [quote for quote in quotes if quote not in said] == []


def test_error_table_has_the_types_of_statuses() -> None:
    page = PAGES["anthropic"]
    rows = re.findall(r"^\| (\d{3}) \| `(\w+)` \|", page, re.MULTILINE)
    statuses = {error.status for error in subclasses(errors.ProxyError)} - {500}
    assert statuses <= {int(status) for status, _ in rows}

    for status, kind in rows:
        own_type = kind if kind == "billing_error" else None  # the plugin that refuses says so
        error = errors.ProxyError("…", status=int(status), error_type=own_type)
        document = json.loads(Dialect.ANTHROPIC.error_body(error, "req_…"))
        assert document["error"]["type"] == kind
        assert document.keys() == json.loads(blocks(page, "json")[0]).keys()


def subclasses(kind: type[errors.ProxyError]) -> set[type[errors.ProxyError]]:
    found = set(kind.__subclasses__())
    return found.union(*(subclasses(each) for each in found))


@pytest.mark.parametrize(("column", "count"), [(0, 18), (1, 13)], ids=["request", "response"])
def test_header_table_lists_headers_that_are_removed(column: int, count: int) -> None:
    lines = [line for line in PAGES["anthropic"].splitlines() if line.startswith("| `")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    removed = [
        name.replace("*", "x")
        for names, *cells in rows
        if len(cells) == 2 and cells[column] == "no"
        for name in re.findall(r"`([\w*-]+)`", names)
    ]
    assert len(removed) == count
    cross = ["Anthropic-Beta", "User-Agent", "X-Unheard-Of", "Retry-After"]
    sent = [(name, "1") for name in (*removed, *cross)]
    if column == 1:
        assert sorted(response_headers(200, sent)) == sorted(cross)
    else:
        head = request_head(
            *("GET", "/v1/x", forwarded(request_headers(sent), default_version="none")),
            authority="api",
            instance="this",
            credential=None,
        )
        names = set(re.findall(r"^([\w-]+): ", head.decode(), re.MULTILINE))
        own = {"Host", "Via", "Anthropic-Version", "Transfer-Encoding"}
        assert names - own == {*cross}


def test_limits_table_has_the_defaults() -> None:
    settings = {setting.name: setting for setting in CORE_SETTINGS}
    page = PAGES["anthropic"]
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\S+) ?(s|MB|kB)?\b", page, re.MULTILINE)
    assert len(rows) == 8
    for name, value, unit in rows:
        text = value.replace(",", "").removesuffix(";") + (unit if unit != "s" else "")
        assert settings[name].parse(text) == settings[name].default


def test_cache_costs_follow_the_price_table() -> None:
    page = PAGES["openai"]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert len(rows) == 4
    rates = SHIPPED.rows["claude-opus-5"].rates
    for requests, *costs in rows:
        reads = (int(requests) - 1) * rates.cache_read
        writes = (rates.cache_write_5m, rates.cache_write_1h)
        costs_in_nanos = [int(requests) * rates.input, *(write + reads for write in writes)]
        assert [float(cost) for cost in costs] == [nanos / rates.input for nanos in costs_in_nanos]


# -- the code for clients

THE_TOKEN = "your-secret-token-here"
THE_URL = "http://localhost:8000"
EXAMPLES = [
    block
    for name in ("anthropic", "authentication", "clients", "openai")
    for block in blocks(PAGES[name])
    if re.match("from (anthropic|openai) import", block)
]


@pytest.fixture
def proxy(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy for the pages' examples, whose SDKs read no variables."""
    clean_environment(monkeypatch)
    return proxy


def pasted(code: str, proxy: Proxy) -> str:
    """Return `code` with address and token of `proxy`, which refuses the token of the pages."""
    assert THE_URL in code
    assert THE_TOKEN in code
    return code.replace(THE_URL, proxy.url).replace(THE_TOKEN, TEST_TOKEN)


@pytest.mark.parametrize("code", EXAMPLES)
async def test_python_example_reaches_the_proxy(
    code: str, proxy: Proxy, records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, Any] = {}
    compiled = compile(pasted(code, proxy), "docs", "exec")
    await asyncio.to_thread(exec, compiled, names)
    clients = [
        each for each in names.values() if isinstance(each, anthropic.Anthropic | openai.OpenAI)
    ]
    assert clients
    for client in clients:
        await asyncio.to_thread(client.models.list)
        client.close()
    assert {record.principal for record in records.all} == {"token"}
    if "print(" in code:
        (content,) = re.findall(r'"content": "(.+?)"', code)
        assert content in capsys.readouterr().out, "the scripted upstream repeats it"


@pytest.mark.long
@pytest.mark.parametrize("framework", ["agents", "langchain_openai", "pydantic_ai"])
async def test_framework_example_prints_the_response(framework: str, proxy: Proxy) -> None:
    """Where the extra ``clients`` is installed, as a program: they leave connections open."""
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is absent: pip install '.[clients]'")
    code = block_with(PAGES["clients"], "python", f"from {framework}")
    command = [sys.executable, "-c", pasted(code, proxy)]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert b"You said: Hello, Claude!" in ran.stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    ("header", "response"),
    [
        ("x-api-key: ", ("type", "message")),
        ("Authorization: Bearer ", ("object", "chat.completion")),
    ],
)
async def test_curl_example_prints_a_response(
    proxy: Proxy, header: str, response: tuple[str, str]
) -> None:
    example = block_with(PAGES["authentication"], "bash", f'-H "{header}{THE_TOKEN}"')
    command = ["sh", "-c", pasted(example, proxy)]
    ran = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert response in json.loads(ran.stdout).items()


@pytest.mark.parametrize(
    ("package", "address"),
    [
        ("@anthropic-ai/sdk", THE_URL),
        ("openai", f"{THE_URL}/openai/v1"),
        ("@ai-sdk/openai", f"{THE_URL}/openai/v1"),
    ],
)
def test_typescript_example_has_base_url_and_token(package: str, address: str) -> None:
    """Node may be absent here: the SDKs themselves are run in tests/system."""
    code = block_with(PAGES["clients"], "typescript", f'from "{package}"')
    assert f'baseURL: "{address}"' in code
    assert f'apiKey: "{THE_TOKEN}"' in code


def test_openai_library_example_translates() -> None:
    code = block_with(PAGES["openai"], "python", "chat_completions.parse")
    request = {"model": "claude-opus-5-5", "messages": [{"role": "user", "content": "Hi"}]}
    names: dict[str, Any] = {
        "request_body": json.dumps(request).encode(),
        "response_body": json.dumps(message_document("Hello")).encode(),
    }
    exec(compile(code, "openai.md", "exec"), names)
    assert json.loads(names["translation"].body)["messages"][0]["role"] == "user"
    assert b"Hello" in names["completion"]
