"""Settings: declarations, sources, precedence and faults."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from given import CANARY, TOKENS, faults_of, sources

from tornadoproxy import ConfigurationError, Secret, Setting, Settings, parsers
from tornadoproxy.config.consistency import contradictions
from tornadoproxy.config.core_settings import (
    ALLOWED_HOSTS,
    CORE_SETTINGS,
    DISABLED_PLUGINS,
    HOST,
    HTTPS_PROXY,
    LOG_LEVEL,
    NO_PROXY,
    PORT,
    TRUSTED_PROXIES,
    UPSTREAM_BASE_URL,
)
from tornadoproxy.config.upstream_key import upstream_key, upstream_key_variable
from tornadoproxy.config.upstreams import default_upstreams
from tornadoproxy.config.urls import EgressProxy
from tornadoproxy.plugin.manager import Plugins

EMPTY = "is set but empty: give it a value or unset it"
DATABASE: Setting[Path | None] = Setting("SHOP_DB", parsers.path, default=None, help="file")


def test_help_is_a_phrase_then_sentences() -> None:
    for setting in (*CORE_SETTINGS, *Plugins.load().declared_settings()):
        phrase, *sentences = re.split(r"\. (?=[A-Z0-9])", setting.help)
        assert re.match(r"[a-z]|[A-Z]{3}|http://", phrase), setting.name
        assert setting.help.endswith(".") == bool(sentences), setting.name


def test_name_of_a_setting_is_validated() -> None:
    for name in ("port", "1PORT", "MY PORT", "MY-PORT", ""):
        with pytest.raises(ValueError, match="a setting's name must be in capitals"):
            Setting(name, parsers.text, default="", help="")
    for name in ("HELP", "VERSION", "ENV_FILE"):
        with pytest.raises(ValueError, match="would have the flag of the program's own option"):
            Setting(name, parsers.text, default="", help="")


def test_settings_hide_secrets(tmp_path: Path) -> None:
    environment = {"UPSTREAM_API_KEY": CANARY, "HTTPS_PROXY": f"http://u:{CANARY}@p.example:1"}
    read = sources(tmp_path, flags={"X": CANARY}, environment=environment, file=f"A={CANARY}")
    settings = read.read(CORE_SETTINGS)
    assert CANARY not in f"{settings!r}{settings}{read!r}"
    assert "UPSTREAM_API_KEY=***" in repr(settings)
    assert "PORT=8000" in repr(settings)


def test_settings_replace_leaves_the_old_ones() -> None:
    old = Settings.defaults(TOKENS)
    new = old.replace({PORT: 1})
    assert (old[PORT], new[PORT]) == (8000, 1)
    assert new[HOST] == old[HOST]
    assert new.variable(PORT) == "PORT"
    assert old.changed(new) == (PORT,)
    assert old.changed(old.replace({})) == ()


def test_settings_know_only_what_is_declared() -> None:
    with pytest.raises(KeyError, match="AUTH_TOKEN is not declared"):
        Settings.defaults()[TOKENS]
    of_the_same_name = Setting("PORT", parsers.text, default="x", help="another")
    settings = Settings.defaults(of_the_same_name)
    assert (settings[PORT], settings[of_the_same_name]) == (8000, "x")


def test_sources_flag_environment_file_default_in_this_order(tmp_path: Path) -> None:
    given: dict[str, Any] = {"flags": {"PORT": "1"}, "environment": {"PORT": "2"}, "file": "PORT=3"}
    ports = []
    for source in list(given):
        ports.append(sources(tmp_path, **given).read(CORE_SETTINGS)[PORT])
        del given[source]
    (tmp_path / ".env").unlink()
    assert [*ports, sources(tmp_path).read(CORE_SETTINGS)[PORT]] == [1, 2, 3, 8000]


@pytest.mark.parametrize(
    ("environment", "file", "key", "variable"),
    [
        ({}, "", None, None),
        ({"UPSTREAM_API_KEY": "own", "ANTHROPIC_API_KEY": "other"}, "", "own", "UPSTREAM_API_KEY"),
        ({"ANTHROPIC_API_KEY": "other"}, "UPSTREAM_API_KEY=own", "own", "UPSTREAM_API_KEY"),
        ({"ANTHROPIC_API_KEY": "other"}, "", "other", "ANTHROPIC_API_KEY"),
        ({}, "ANTHROPIC_API_KEY=other", "other", "ANTHROPIC_API_KEY"),
        ({"ANTHROPIC_API_KEY": "\t"}, "", None, None),
    ],
)
def test_fallback_is_read_last_unless_it_is_blank(
    tmp_path: Path, environment: dict[str, str], file: str, key: str | None, variable: str | None
) -> None:
    settings = sources(tmp_path, environment=environment, file=file).read(CORE_SETTINGS)
    assert upstream_key(settings) == (Secret(key) if key else None)
    assert upstream_key_variable(settings) == variable
    told = f"{variable}: the upstream refused this key" if key else "UPSTREAM_API_KEY is not set"
    (upstream,) = default_upstreams(settings)
    assert upstream.key_fault().startswith(told)


def test_key_file_takes_precedence_over_the_fallback(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("stored\n")
    environment = {"UPSTREAM_API_KEY_FILE": f"{tmp_path}/key", "ANTHROPIC_API_KEY": "other"}
    settings = sources(tmp_path, environment=environment).read(CORE_SETTINGS)
    assert upstream_key(settings) == Secret("stored")
    assert upstream_key_variable(settings) == "UPSTREAM_API_KEY_FILE"
    assert contradictions(settings) == ()


def test_values_that_other_programs_use_are_read(tmp_path: Path) -> None:
    environment = {
        "https_proxy": "http://proxy.example:3128",
        "AUTH_TOKEN": f" {CANARY}\n",
        "LOG_LEVEL": "WARNING",
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8000",  # which leads clients to this proxy
    }
    file = "no_proxy=a.example,10.0.0.1\nANTHROPIC_BASE_URL=http://127.0.0.1:8000"
    read = sources(tmp_path, environment=environment, file=file)
    settings = read.read([*CORE_SETTINGS, TOKENS])
    assert settings[HTTPS_PROXY] == EgressProxy("proxy.example", 3128)
    assert settings[NO_PROXY] == ("a.example", "10.0.0.1")
    assert (settings[TOKENS], settings[LOG_LEVEL]) == ((Secret(CANARY),), "warning")
    assert settings[UPSTREAM_BASE_URL] == UPSTREAM_BASE_URL.default
    ignored, hint = read.warnings(CORE_SETTINGS)
    assert ignored.endswith(".env: 1 name that is no setting of tornadoproxy: ignored")
    assert "set UPSTREAM_BASE_URL for another upstream" in hint


def test_blank_value_is_a_fault_or_none(tmp_path: Path) -> None:
    may_be_blank = [HTTPS_PROXY, NO_PROXY, DISABLED_PLUGINS, TRUSTED_PROXIES, ALLOWED_HOSTS]
    required = [each for each in CORE_SETTINGS if not each.blank]
    read = sources(tmp_path, environment={each.name: "  " for each in CORE_SETTINGS})
    assert faults_of(read) == tuple(f"{each.name} {EMPTY}" for each in required)
    values = read.read(may_be_blank)
    assert [values[each] for each in may_be_blank] == [each.default for each in may_be_blank]


def test_blank_value_hides_the_next_source(tmp_path: Path) -> None:
    read = sources(tmp_path, environment={"AUTH_TOKEN": ""}, file=f"AUTH_TOKEN={CANARY}")
    assert faults_of(read, TOKENS) == (f"AUTH_TOKEN {EMPTY}",)
    read = sources(tmp_path, file="\n# mine\nAUTH_TOKEN=\n")
    assert faults_of(read, TOKENS) == (f"AUTH_TOKEN {EMPTY} ({tmp_path / '.env'}, line 3)",)


def _upside_down(text: str) -> object:
    raise ValueError(f"must be the other way round: {text[3:9].upper()} is not")


def _last_four(text: str) -> object:
    raise ValueError(f"must not end={text[-4:]}")


def _takes_a_text(value: Any) -> bool:
    return inspect.isfunction(value) and list(inspect.signature(value).parameters) == ["value"]


EVERY_PARSER: list[Any] = [
    *filter(_takes_a_text, (getattr(parsers, name) for name in parsers.__all__)),
    *(parsers.integer(0, 9), parsers.seconds(), parsers.choice("a", "b"), int, float),
    *(_upside_down, _last_four),
]


@pytest.mark.parametrize("text", [CANARY, f"a={CANARY} w0rd", "zq", "\x01zq", f"zq=1, {CANARY}/ü"])
def test_fault_of_a_secret_setting_quotes_no_part_of_it(tmp_path: Path, text: str) -> None:
    faults: list[str] = []
    for parse in EVERY_PARSER:
        setting = Setting("PIN", parse, default=None, help="anything", secret=True)
        try:
            sources(tmp_path, environment={"PIN": text}).read([setting])
        except ConfigurationError as error:
            faults += error.faults
    assert len(faults) > 8
    for fault in faults:
        assert fault.startswith("PIN ")
        pieces = re.findall(r"\w{2,}", text.casefold())
        assert not [piece for piece in pieces if piece in fault.casefold()]


def test_parser_of_a_plugin_that_crashes_is_a_fault(tmp_path: Path) -> None:
    def crash(text: str) -> object:
        raise KeyError(text)

    read = sources(tmp_path, environment={"PIN": CANARY})
    (fault,) = faults_of(read, Setting("PIN", crash, default=None, help="anything"))
    assert fault == "PIN has a value that its parser cannot read (KeyError): see `help settings`"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("UPSTREAM_URL", "UPSTREAM_BASE_URL"),  # a missing word
        ("UPSTREAM_BASE_URI", "UPSTREAM_BASE_URL"),
        ("AUTH_TOKN", "AUTH_TOKEN"),
        ("auth_token", "AUTH_TOKEN"),
        ("AUTHTOKEN", "AUTH_TOKEN"),
        ("PROT", "PORT"),
        ("Https_Proxy", "HTTPS_PROXY"),
    ],
)
def test_similar_name_is_reported(tmp_path: Path, name: str, meant: str) -> None:
    declared = [*CORE_SETTINGS, TOKENS]
    in_file = sources(tmp_path, file=f"PORT=1\n{name}=x\n")
    assert in_file.misspelled(declared) == (
        f"{tmp_path / '.env'}, line 2: unknown setting {name}: did you mean {meant}?",
    )
    in_environment = sources(tmp_path, environment={name: CANARY}, file="")
    assert in_environment.misspelled(declared) == ()
    assert list(in_environment.warnings(declared)) == [
        f"{name} in the environment is not read: did you mean {meant}?"
    ]


def test_names_of_other_programs_are_ignored_and_counted(tmp_path: Path) -> None:
    names = [
        *("HOME", "PATH", "HTTP_PROXY", "http_proxy", "OPENAI_API_KEY", "SSL_CERT"),
        *("ANTHROPIC_AUTH_TOKEN", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "REDIS_URL"),
    ]
    declared = [*CORE_SETTINGS, *Plugins.load().declared_settings()]
    file = "\n".join(f"{name}=x" for name in names)
    read = sources(tmp_path, environment=dict.fromkeys(names, "x"), file=file)
    assert read.misspelled(declared) == ()
    (line,) = read.warnings(declared)
    assert line.endswith(".env: 9 names that are no setting of tornadoproxy: ignored")


@pytest.mark.parametrize(
    ("variable", "safe", "mode", "told"),
    [
        ("UPSTREAM_API_KEY_FILE", 0o640, 0o644, "can read it: chmod o-r "),
        ("TOKEN_FILE", 0o640, 0o604, "can read it: chmod o-r "),
        ("TLS_KEY", 0o640, 0o644, "can read it: chmod o-r "),
        ("SHOP_DB", 0o664, 0o666, "can write it: chmod o-w "),
        ("NOTES_DB", 0o664, 0o666, "can write it: chmod o-w "),
        ("RESPONSES_STORE", 0o640, 0o644, "can read it: chmod o-r "),
    ],
)
def test_file_open_to_other_users_is_a_warning(
    tmp_path: Path, variable: str, safe: int, mode: int, told: str
) -> None:
    path = tmp_path / "file"
    token: Setting[Any] = Setting("TOKEN_FILE", parsers.secrets_file, default=(), help="")
    notes: Setting[Any] = Setting("NOTES_DB", parsers.database, default=None, help="")
    declared = [*CORE_SETTINGS, DATABASE, token, notes]
    read = sources(tmp_path, environment={variable: str(path)})
    assert list(read.warnings(declared)) == []
    path.write_text(CANARY)
    path.chmod(safe)
    assert list(read.warnings(declared)) == []
    path.chmod(mode)
    (line,) = read.warnings(declared)
    assert line == f"{variable}={path}: every user of this machine {told}{path}"


def test_env_file_with_a_secret_open_to_others_is_a_warning(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    told = f"{path}: every user of this machine can read it: chmod o-r {path}"
    secret = f"UPSTREAM_API_KEY={CANARY}"
    for content, mode, warned in ((secret, 0o640, 0), (secret, 0o644, 1), ("PORT=1", 0o644, 0)):
        read = sources(tmp_path, file=content)
        path.chmod(mode)
        assert list(read.warnings(CORE_SETTINGS)) == [told] * warned


SECRET_ASSIGNED = re.compile(r"\b([A-Z_]+_(?:TOKEN|KEY)|OTEL_EXPORTER_OTLP_HEADERS)=\"?([^\s\"`]+)")
CLIENT_SENDS = re.compile(r"(?:api_key=|apiKey: |ANTHROPIC_AUTH_TOKEN=)\"?([\w-]+)")


def test_placeholders_of_the_documentation_are_refused(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    files = [root / "README.md", root / ".env.example", *root.glob("docs/*.md")]
    declared = (*CORE_SETTINGS, *Plugins.load().declared_settings())
    secret = {each.name: each for each in declared if each.secret}
    found = {
        (name, value)
        for file in files
        for name, value in SECRET_ASSIGNED.findall(file.read_text())
        if name in secret and not value.startswith("$")
    }
    # the tokens of client examples, too; a plugin's own credentials are others
    for name in ("README.md", "docs/anthropic.md", "docs/openai.md"):
        shown = set(CLIENT_SENDS.findall((root / name).read_text())) - {"dummy", "null"}
        assert shown
        found |= {("AUTH_TOKEN", value) for value in shown}
    assert len(found) >= 5
    for name, value in found:
        (fault,) = faults_of(sources(tmp_path, environment={name: value}), secret[name])
        assert fault.startswith(name)
