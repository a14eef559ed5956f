"""The lines that are shown once the proxy listens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tornadoproxy import Secret, SecretURL, Settings
from tornadoproxy.cli import banner
from tornadoproxy.config import env_file
from tornadoproxy.config.core_settings import (
    HOST,
    REUSE_PORT,
    SHARED_LIMITS,
    TLS_CERT,
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
)
from tornadoproxy.config.responses_settings import RESPONSES_STORE, RESPONSES_STORE_TTL
from tornadoproxy.config.setting import Setting
from tornadoproxy.config.sources import Sources
from tornadoproxy.config.upstreams import default_upstreams
from tornadoproxy.plugin.manager import Plugins

SETTINGS = Settings.defaults().replace({UPSTREAM_API_KEY: Secret("sk-canary-key-51d0a7")})


def configured(settings: Settings) -> Plugins:
    plugins = Plugins.load()
    plugins.upstreams = default_upstreams(settings)
    return plugins


@pytest.mark.parametrize(
    ("host", "listening", "client"),
    [
        ("0.0.0.0", "http://0.0.0.0:9", "http://127.0.0.1:9"),
        ("::", "http://[::]:9", "http://[::1]:9"),
        ("proxy.example", "http://proxy.example:9", "http://proxy.example:9"),
    ],
)
def test_banner_has_a_url_that_works(host: str, listening: str, client: str) -> None:
    settings = SETTINGS.replace({HOST: host})
    facts = banner.facts(settings, 9, (), configured(settings))
    assert ("address", listening) in facts
    lines = "\n".join(banner.banner(settings, 9, facts, "throw-away"))
    assert f'ANTHROPIC_BASE_URL={client}\nexport ANTHROPIC_AUTH_TOKEN="throw-away"' in lines
    assert f'base_url="{client}/openai/v1", api_key="throw-away"' in lines
    lines = "\n".join(banner.banner(settings, 9, facts, "$AUTH_TOKEN"))
    assert f'base_url="{client}", api_key=os.environ["AUTH_TOKEN"]' in lines
    assert banner.streaming_curl(settings, 9, "x").startswith(f"curl -N {client}/v1/messages")
    with_tls = settings.replace({TLS_CERT: Path("cert.pem")})
    assert banner.listening_url(with_tls, 9) == listening.replace("http:", "https:")


def test_banner_names_the_variable_of_the_key() -> None:
    def upstream(settings: Settings) -> str:
        return dict(banner.facts(settings, 9, (), configured(settings)))["upstream"]

    assert upstream(SETTINGS).endswith("key from UPSTREAM_API_KEY")
    assert upstream(Settings.defaults()).endswith("no key")
    by_file = Settings.defaults().replace({UPSTREAM_API_KEY_FILE: Secret("k")})
    assert upstream(by_file).endswith("key from UPSTREAM_API_KEY_FILE")


ELSEWHERE = "; other proxies do not find them unless RESPONSES_STORE names a database"
KEPT = "prompts and responses of /openai/v1/responses kept in "


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, f"{KEPT}memory for 30 days at most"),
        ({RESPONSES_STORE_TTL: 90.5}, f"{KEPT}memory for 90.5 seconds at most"),
        ({REUSE_PORT: True}, f"{KEPT}memory for 30 days at most{ELSEWHERE}"),
        (
            {SHARED_LIMITS: SecretURL("redis://u:p@h")},
            f"{KEPT}memory for 30 days at most{ELSEWHERE}",
        ),
        (
            {RESPONSES_STORE: SecretURL("postgresql://u:p@h/d"), REUSE_PORT: True},
            f"{KEPT}postgresql://u:***@h/d for 30 days",
        ),
        ({RESPONSES_STORE: "off"}, "not kept (RESPONSES_STORE=off)"),
    ],
)
def test_banner_says_where_content_is_kept(values: dict[Setting[Any], Any], line: str) -> None:
    settings = SETTINGS.replace(values)
    assert dict(banner.facts(settings, 9, (), configured(settings)))["responses"] == line


def test_banner_names_a_database_that_does_not_hold_responses() -> None:
    environment = {"DATABASE_URL": "postgresql://h/d"}.get
    settings = Settings(SETTINGS, environment=environment)
    facts = dict(banner.facts(settings, 9, (), configured(settings)))
    assert facts["responses"].endswith(ELSEWHERE)


def test_credential_of_other_plugins_is_a_placeholder() -> None:
    declared = Plugins.load().declared_settings()
    nothing = Sources({}, {}, env_file.EnvFile(".env", {}))
    settings = Settings.defaults(*declared)
    assert banner.credential(settings, nothing, declared) == (
        "Paste this first, with your credential (if you need one) in place of your-token:",
        "export AUTH_TOKEN=your-token",
    )
    (keys,) = [setting for setting in declared if setting.name == "KEYS_DB"]
    assert banner.credential(settings.replace({keys: Path("keys.db")}), nothing, declared) == (
        "Paste this first, with a key of yours in place of your-key:",
        "export AUTH_TOKEN=your-key",
    )
