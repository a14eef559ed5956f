"""What the README says is so: its settings, quotations, commands and code."""

from __future__ import annotations

import ast
import asyncio
import importlib.metadata
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

from tornadoproxy import Outcome, RequestRecord, Setting, Usage
from tornadoproxy.cli.help_text import default_text
from tornadoproxy.config.command_line import COMMANDS
from tornadoproxy.config.core_settings import CORE_SETTINGS
from tornadoproxy.plugin import hookspecs
from tornadoproxy.plugin.manager import Plugins
from tornadoproxy.testing import TEST_TOKEN, Proxy, Records, StartProxy, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tornado.ioloop import IOLoop

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")

THE_TOKEN = "your-secret-token-here"
THE_URL = "http://localhost:8000"


def blocks(language: str) -> list[str]:
    """The code blocks of `language`, the lines within the fences."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def block_with(language: str, part: str) -> str:
    found = [block for block in blocks(language) if part in block]
    assert len(found) == 1, f"{len(found)} {language} blocks hold {part!r}"
    return found[0]


def settings_table(settings: Iterable[Setting[Any]]) -> Iterator[str]:
    for setting in settings:
        names = " or ".join(f"`{name}`" for name in (setting.name, *setting.fallbacks))
        default = default_text(setting)
        shown = "" if default == "none" else f"`{default}`"
        no_flag = "" if setting.flag else " *No flag.*"
        what = setting.help.replace("*", r"\*")
        yield f"| {names} | {shown} | {what}{no_flag} |"


def plugin_settings() -> tuple[Setting[Any], ...]:
    """The settings of the plugins in this distribution."""
    ours = importlib.metadata.distribution("tornadoproxy").entry_points.select(group="tornadoproxy")
    return Plugins.load(entry_points=ours).declared_settings()


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| `.*\|$", README, re.MULTILINE)
    settings = [row for row in rows if re.match(r"\| `[A-Z_]+`", row)]

    assert settings == list(settings_table((*CORE_SETTINGS, *plugin_settings())))


def test_every_command_and_hook_is_described() -> None:
    hooks = [
        name
        for name, value in vars(hookspecs).items()
        if getattr(value, f"{hookspecs.PROJECT}_spec", None) is not None
    ]
    assert len(hooks) >= 6

    for name in (*COMMANDS, *hooks):
        assert re.search(rf"^\| `{name}(\(.*\))?` ", README, re.MULTILINE), name


def test_the_line_of_the_access_log_is_one() -> None:
    record = RequestRecord(
        time=datetime(2026, 11, 24, 10, 35, 57, 817_000, UTC).timestamp(),
        request_id="req_01af9a8cf1136d6e737a445c",
        principal="token",
        groups=(),
        method="POST",
        route="/v1/messages",
        dialect="anthropic",
        remote_ip="127.0.0.1",
        status=200,
        outcome=Outcome.COMPLETED,
        error=None,
        model="claude-sonnet-5-5",
        usage=Usage(input_tokens=5, output_tokens=11),
        cost=120_000,
        stop_reason="end_turn",
        bytes_in=102,
        bytes_out=2122,
        duration=4.811,
        time_to_first_byte=0.312,
        time_to_first_token=0.401,
        upstream_time=4.809,
        session_id=None,
        agent_id=None,
        parent_agent_id=None,
        traceparent=None,
        tracestate=None,
    )
    assert block_with("text", "POST /v1/messages") == text_line(record).decode() + "\n"
    assert all(f"`{outcome}`" in README for outcome in Outcome)


QUOTED = re.findall(r"^<!-- (\S+/\S+) -->\n```\w*\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("path", "block"), QUOTED, ids=[path for path, _ in QUOTED])
def test_what_is_quoted_stands_in_the_file(path: str, block: str) -> None:
    assert block.strip()
    assert block in (ROOT / path).read_text(encoding="utf-8")


def test_every_file_that_is_for_deployment_or_the_ten_lines_is_quoted() -> None:
    # nobody types in a dashboard, or a lock file
    linked = set(re.findall(r"\]\((deploy/[^)]+)\)", README))
    directories = ("deploy", "examples/tornadoproxy-office")
    files = {
        path.relative_to(ROOT).as_posix()
        for directory in directories
        for path in (ROOT / directory).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files
    assert files == {path for path, _ in QUOTED} | linked


def test_the_plugin_in_ten_lines_has_no_more() -> None:
    code = (ROOT / "examples/tornadoproxy-office/tornadoproxy_office.py").read_text()
    assert len([line for line in code.splitlines() if line]) <= 10


def test_ci_runs_the_words_of_the_readme() -> None:
    command = block_with("bash", "-m pytest").strip()

    assert "\n" not in command
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


@pytest.fixture
def proxy(io_loop: IOLoop, start_proxy: StartProxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """One with an address and a token for the README's examples."""
    clean_environment(monkeypatch)
    started: Proxy = io_loop.run_sync(lambda: start_proxy(AUTH_TOKEN=TEST_TOKEN))
    return started


def pasted(code: str, proxy: Proxy) -> str:
    """`code` with address and token of `proxy`; the README's token is refused as a placeholder."""
    assert THE_URL in code
    assert THE_TOKEN in code
    return code.replace(THE_URL, proxy.url).replace(THE_TOKEN, TEST_TOKEN)


async def run(code: str, proxy: Proxy) -> dict[str, Any]:
    """Run one of the README's Python blocks against `proxy`; return its names."""
    names: dict[str, Any] = {}
    compiled = compile(pasted(code, proxy), "README.md", "exec")
    await asyncio.to_thread(exec, compiled, names)
    return names


async def test_the_anthropic_client_in_python_works(
    proxy: Proxy, records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    names = await run(block_with("python", "from anthropic import"), proxy)

    assert isinstance(names["client"], anthropic.Anthropic)
    assert "Hello, Claude!" in capsys.readouterr().out
    assert (await records.finished()).principal == "token"
    names["client"].close()


@pytest.mark.parametrize("alternative", ["auth_token=", "default_headers="])
async def test_its_alternatives_work(proxy: Proxy, records: Records, alternative: str) -> None:
    statements = ast.parse(block_with("python", alternative)).body
    (statement,) = (ast.unparse(each) for each in statements if alternative in ast.unparse(each))
    code = "from anthropic import Anthropic\n" + statement

    client = (await run(code, proxy))["client"]
    await asyncio.to_thread(client.models.list)
    assert (await records.finished()).status == 200
    client.close()


async def test_the_openai_client_in_python_works(proxy: Proxy) -> None:
    names = await run(block_with("python", "from openai import"), proxy)
    client = names["client"]
    assert names["completion"].choices[0].message.content.endswith("Hello, Claude!")
    stranger = client.with_options(api_key="somebody-else", max_retries=0)

    with pytest.raises(openai.AuthenticationError) as refused:
        await asyncio.to_thread(stranger.models.list)
    assert refused.value.code == "invalid_api_key"
    client.close()


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
@pytest.mark.parametrize(
    ("header", "response"),
    [
        ("x-api-key: ", ("type", "message")),
        ("Authorization: Bearer ", ("object", "chat.completion")),
    ],
)
async def test_the_curl_commands_work(
    proxy: Proxy, records: Records, header: str, response: tuple[str, str]
) -> None:
    command = pasted(block_with("bash", f'-H "{header}{THE_TOKEN}"'), proxy)

    ran = await asyncio.to_thread(
        subprocess.run, ["sh", "-c", command], capture_output=True, check=True, text=True
    )
    assert response in json.loads(ran.stdout).items()
    assert (await records.finished()).status == 200


@pytest.mark.parametrize("package", ["@anthropic-ai/sdk", "openai"])
def test_typescript_is_told_the_same(package: str) -> None:
    """Node is not part of these tests: at least token and address agree with the tested ones."""
    code = block_with("typescript", f'from "{package}"')
    address = f"{THE_URL}/openai/v1" if package == "openai" else THE_URL

    assert f'baseURL: "{address}"' in code
    assert f'apiKey: "{THE_TOKEN}"' in code
