"""Canaries in what the program prints when it starts, or does not."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import pytest
from canaries import (
    ADMIN_KEY,
    COLLECTOR_KEY,
    EGRESS_PASSWORD,
    EVERYTHING,
    KEY,
    NEW_KEY,
    NEW_TOKEN,
    OTHER_TOKEN,
    PLUGINS_SETTINGS,
    READ_KEY,
    TOKEN,
    found,
)
from program import install, run

from tornadoproxy.cli import main as cli


def test_found_sees_a_canary_in_each_encoding() -> None:
    """Were it not, none of the tests below would mean anything."""
    basic = base64.b64encode(f"user:{EGRESS_PASSWORD}".encode())

    assert found([EGRESS_PASSWORD], b"Proxy-Authorization: Basic " + basic) == [EGRESS_PASSWORD]
    assert found([TOKEN], f"?key={quote(TOKEN, safe='')}".encode()) == [TOKEN]
    assert found([TOKEN], json.dumps({"key": TOKEN}).encode()) == [TOKEN]
    assert found([TOKEN], b"KeyError: " + repr(TOKEN).encode()) == [TOKEN]
    assert found(EVERYTHING, b"nothing to see here") == []


def secret_files(directory: Path) -> dict[str, Path]:
    """Files that hold canaries where something else ought to be."""
    texts = {
        "two.txt": f"{KEY} {NEW_KEY}",
        "control.txt": f"{TOKEN}\x01{OTHER_TOKEN}",
        "unknown.env": f"AUTH_TOKENS={TOKEN}\n",
        "bare.env": f"{TOKEN}\n",
        "assignment.env": f"{TOKEN}={KEY}\n",
        "quote.env": f"AUTH_TOKEN='{TOKEN}\nUPSTREAM_API_KEY={KEY}\n",
        "blank.env": f"UPSTREAM_API_KEY={KEY} {NEW_KEY}\n",
        "export.env": f"export {TOKEN}\n",
    }
    for name, text in texts.items():
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
    return {name: directory / name for name in texts}


BUDGETS = {"BUDGETS_DB": "budgets.db"}
GOOD = {"AUTH_TOKEN": TOKEN, "UPSTREAM_API_KEY": KEY, "PORT": "0"}

ENV_FILE = "--env-file"
BAD: list[tuple[list[str], dict[str, str]]] = [
    *(
        ([], {name: value})
        for name, value in (
            ("AUTH_TOKEN", f"{TOKEN}\x01"),
            ("UPSTREAM_API_KEY", f"{KEY} {NEW_KEY}"),
            ("UPSTREAM_API_KEY", f"{KEY}\x7f"),
            ("AUTH_TOKEN_FILE", TOKEN),
            ("AUTH_TOKEN_FILE", "{two.txt}"),
            ("AUTH_TOKEN_FILE", "{control.txt}"),
            ("UPSTREAM_API_KEY_FILE", KEY),
            ("UPSTREAM_API_KEY_FILE", "{two.txt}"),
            ("ALLOW_ANONYMOUS", "yes"),
            ("HTTPS_PROXY", f"socks5://user:{EGRESS_PASSWORD}@proxy:1"),
            ("HTTPS_PROXY", f"http://user:{EGRESS_PASSWORD}@proxy/path"),
            ("HTTPS_PROXY", f"http://u:{EGRESS_PASSWORD}@proxy:99999"),
            ("HTTPS_PROXY", f"http://u:{EGRESS_PASSWORD}@"),
            ("https_proxy", f"ftp://u:{EGRESS_PASSWORD}@proxy"),
            ("UPSTREAM_BASE_URL", f"https://user:{KEY}@up.example"),
            ("UPSTREAM_BASE_URL", f"https://up.example/?key={KEY}"),
            ("BUDGETS_ADMIN_KEY", ADMIN_KEY),  # without BUDGETS_DB
            ("OTEL_EXPORTER_OTLP_HEADERS", COLLECTOR_KEY),
            ("OTEL_EXPORTER_OTLP_HEADERS", f"x-key={COLLECTOR_KEY}%0A{KEY}"),
        )
    ),
    ([], {"UPSTREAM_API_KEY": "", "ANTHROPIC_API_KEY": f"{KEY} {NEW_KEY}"}),
    ([], {**BUDGETS, "BUDGETS_ADMIN_KEY": f"ops={TOKEN}"}),
    ([], {**BUDGETS, "BUDGETS_ADMIN_KEY": f"ops={ADMIN_KEY} ops={READ_KEY}"}),
    ([], {**BUDGETS, "BUDGETS_ADMIN_KEY": ADMIN_KEY, "BUDGETS_ADMIN_READ_KEY": ADMIN_KEY}),
    ([], {"BUDGETS_DB": "/", "BUDGETS_ADMIN_KEY": ADMIN_KEY}),
    (
        [],
        {"OTEL_TRACES": "yes", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://u:{COLLECTOR_KEY}@c"},
    ),
    ([f"--budgets-admin-key={ADMIN_KEY}"], BUDGETS),
    ([ENV_FILE, "{blank.env}"], {"UPSTREAM_API_KEY": ""}),
    *(
        (arguments, {})
        for arguments in (
            ["--otel-exporter-otlp-headers", f"x-key={COLLECTOR_KEY}"],
            ["--upstream-base-url", f"https://u:{KEY}@up.example"],
            ["--auth-token", TOKEN],
            [f"--auth-token={TOKEN}"],
            ["serve", f"--upstream-api-key={KEY}"],
            [f"--token={TOKEN}"],
            ["check", "--token", TOKEN],
            [TOKEN],
            ["check", TOKEN],
            [f"--{TOKEN}"],
            [f"-k{TOKEN}"],
            [ENV_FILE, "{unknown.env}"],
            [ENV_FILE, "{bare.env}"],
            [ENV_FILE, "{quote.env}"],
            [ENV_FILE, "{export.env}"],
        )
    ),
]


@pytest.mark.parametrize(("arguments", "variables"), BAD)
def test_wrong_setting_shows_no_canary(
    arguments: list[str],
    variables: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = secret_files(tmp_path)

    def placed(text: str) -> str:
        return str(files[text[1:-1]]) if text[:1] == "{" else text

    environment = {**GOOD, **{key: placed(value) for key, value in variables.items()}}

    status = cli.main([placed(argument) for argument in arguments], environment)

    output, errors = capfd.readouterr()
    assert status == 2
    assert output == ""
    assert all(line.startswith("tornadoproxy: ") for line in errors.splitlines())
    assert errors.strip() != ""
    assert found(EVERYTHING, errors.encode()) == []


def test_warning_of_ignored_names_shows_no_canary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ignored = secret_files(tmp_path)["assignment.env"]
    ignored.chmod(0o644)
    environment = {**GOOD, f"{TOKEN}_NAME": KEY}

    assert cli.main(["check", "--env-file", str(ignored)], environment) == 0

    output, errors = capfd.readouterr()
    assert "1 name that is no setting" in errors
    assert found(EVERYTHING, f"{output}{errors}".encode()) == []


@pytest.mark.parametrize("command", ["check", "plugins", "token", "--help", "--version"])
def test_command_shows_no_canary(
    command: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "AUTH_TOKEN": f"{TOKEN} {OTHER_TOKEN}",
        "UPSTREAM_API_KEY": KEY,
        "HTTPS_PROXY": f"http://user:{EGRESS_PASSWORD}@proxy.example:3128",
        "ANTHROPIC_API_KEY": NEW_KEY,
        "ANTHROPIC_AUTH_TOKEN": NEW_TOKEN,
        **PLUGINS_SETTINGS,
    }

    assert cli.main([command], environment) == 0

    output, errors = capfd.readouterr()
    if command in ("check", "plugins"):
        for name in ("keys", "budgets", "otel"):
            assert name in output
    assert output.strip() != ""
    assert errors == ""
    assert found(EVERYTHING, output.encode()) == []


@pytest.mark.parametrize(
    "hook",
    [
        "startup():\n    raise KeyError(os.environ['AUTH_TOKEN'], os.environ['UPSTREAM_API_KEY'])",
        "configure(settings):\n    raise ValueError(str(os.environ))",
    ],
    ids=["startup", "configure"],
)
def test_plugin_failing_at_start_shows_no_canary(hook: str, tmp_path: Path) -> None:
    source = f"import os\nfrom tornadoproxy import hookimpl\n\n@hookimpl\ndef {hook}\n"
    install(tmp_path, "careless", source)
    ended = run(tmp_path, **GOOD)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    name = hook.partition("(")[0]
    assert line.startswith(f"tornadoproxy: plugin 'careless' failed in {name}: ")
    assert found(EVERYTHING, f"{ended.stdout}{ended.stderr}".encode()) == []
