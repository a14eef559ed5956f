"""The README, and the pages on settings, deployment, clients and authentication."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from tornadoproxy_access_log import text_line

from tornadoproxy import Outcome, Usage
from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.testing import (
    TEST_TOKEN,
    Proxy,
    Records,
    StartProxy,
    clean_environment,
    request_record,
)

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md")}
ALL = "\n".join([README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), *PAGES.values()])

THE_TOKEN = "your-secret-token-here"
THE_URL = "http://localhost:8000"
QUOTED = re.findall(r"^<!-- (\S+/\S+) -->\n```\w*\n(.*?)^```$", ALL, re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of `language`, without the fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def block_with(text: str, language: str, part: str) -> str:
    (block,) = (block for block in blocks(text, language) if part in block)
    return block


def test_readme_is_at_most_ten_kilobytes() -> None:
    assert len(README.encode()) <= 10_000


def test_settings_page_is_what_the_code_generates() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert PAGES["settings"] == generate.settings_page(), "run: python docs/generate.py"


def test_every_command_is_described() -> None:
    for name in COMMANDS:
        assert re.search(rf"^\| .*`{name}`", PAGES["settings"], re.MULTILINE), name


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
    page = PAGES["deploy"]
    assert block_with(page, "text", "POST /v1/messages") == text_line(record).decode() + "\n"
    assert all(f"| `{outcome}` |" in page for outcome in Outcome)


@pytest.mark.parametrize(("path", "block"), QUOTED, ids=[path for path, _ in QUOTED])
def test_quotation_is_in_its_file(path: str, block: str) -> None:
    assert block.strip()
    assert block in (ROOT / path).read_text(encoding="utf-8")


def test_every_deployment_file_is_named() -> None:
    files = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "deploy").rglob("*") if path.is_file()
    }
    assert files
    assert [path for path in files if path not in ALL] == []


def test_office_plugin_has_at_most_ten_lines() -> None:
    code = (ROOT / "examples/tornadoproxy-office/tornadoproxy_office.py").read_text()
    assert len([line for line in code.splitlines() if line]) <= 10


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


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, link


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# -- the code for clients


@pytest.fixture
def proxy(io_loop: IOLoop, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """A proxy for the pages' examples."""
    clean_environment(monkeypatch)
    started: Proxy = io_loop.run_sync(start_proxy)
    return started


def pasted(code: str, proxy: Proxy) -> str:
    """`code` with address and token of `proxy`; the pages' token is refused as a placeholder."""
    assert THE_URL in code
    assert THE_TOKEN in code
    return code.replace(THE_URL, proxy.url).replace(THE_TOKEN, TEST_TOKEN)


PYTHON = [
    block for name in ("authentication", "clients") for block in blocks(PAGES[name], "python")
]


@pytest.mark.parametrize("code", PYTHON)
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
        assert "Hello, Claude!" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    ("page", "header", "response"),
    [
        ("authentication", "x-api-key: ", ("type", "message")),
        ("authentication", "Authorization: Bearer ", ("object", "chat.completion")),
    ],
)
async def test_curl_example_prints_a_response(
    proxy: Proxy, page: str, header: str, response: tuple[str, str]
) -> None:
    command = pasted(block_with(PAGES[page], "bash", f'-H "{header}{THE_TOKEN}"'), proxy)
    ran = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", command], capture_output=True, check=True, text=True
    )
    assert response in json.loads(ran.stdout).items()


@pytest.mark.parametrize("package", ["@anthropic-ai/sdk", "openai"])
def test_typescript_example_has_base_url_and_token(package: str) -> None:
    """Node may be absent here: the SDKs themselves are run in tests/system."""
    code = block_with(PAGES["clients"], "typescript", f'from "{package}"')
    address = f"{THE_URL}/openai/v1" if package == "openai" else THE_URL
    assert f'baseURL: "{address}"' in code
    assert f'apiKey: "{THE_TOKEN}"' in code
