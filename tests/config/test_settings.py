"""Settings: each parser, where values come from, and what each mistake is told."""

from __future__ import annotations

import inspect
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from tornadoproxy import ConfigurationError, Secret, Setting, Settings, parsers
from tornadoproxy.config import env_file
from tornadoproxy.config.consistency import contradictions
from tornadoproxy.config.core_settings import (
    ALLOWED_HOSTS,
    CORE_SETTINGS,
    DEFAULT_ANTHROPIC_VERSION,
    DISABLED_PLUGINS,
    DRAIN_TIMEOUT,
    HOST,
    HTTPS_PROXY,
    LOG_LEVEL,
    MAX_BODY_SIZE,
    MAX_CONCURRENT_REQUESTS,
    NO_PROXY,
    PORT,
    REUSE_PORT,
    SSE_KEEPALIVE_INTERVAL,
    TLS_CERT,
    TLS_KEY,
    TRUSTED_PROXIES,
    UPSTREAM_ALLOW_CLEARTEXT,
    UPSTREAM_API_KEY,
    UPSTREAM_API_KEY_FILE,
    UPSTREAM_AUTH_SCHEME,
    UPSTREAM_BASE_URL,
    UPSTREAM_CA_FILE,
    UPSTREAM_CONNECT_TIMEOUT,
    UPSTREAM_FIRST_BYTE_TIMEOUT,
    UPSTREAM_IDLE_TIMEOUT,
)
from tornadoproxy.config.sources import Sources
from tornadoproxy.config.upstream_key import upstream_key
from tornadoproxy.config.urls import BaseURL, EgressProxy
from tornadoproxy.plugin.manager import Plugins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CANARY = "sk-canary-8f3b1d"

TOKENS: Setting[tuple[Secret, ...]] = Setting(
    "AUTH_TOKEN",
    parsers.secrets,
    default=(),
    help="Tokens, as a plugin declares them.",
    secret=True,
)


def sources(
    directory: Path,
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | bytes | None = None,
) -> Sources:
    """Sources as a process started in `directory` has them, with `file` as its ``.env``."""
    path = directory / ".env"
    if file is not None:
        path.write_bytes(file.encode() if isinstance(file, str) else file)
    return Sources(flags or {}, environment or {}, env_file.read(path, required=False))


def faults_of(read: Sources, *declared: Setting[Any]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        read.read(declared or CORE_SETTINGS)
    return raised.value.faults


def _takes_a_text(name: str, value: Any) -> bool:
    public = inspect.isfunction(value) and not name.startswith("_")
    return public and list(inspect.signature(value).parameters) == ["value"]


def _upside_down(text: str) -> object:
    raise ValueError(f"must be the other way round: {text[3:9].upper()} is not")


EVERY_PARSER: list[Any] = [
    *(value for name, value in vars(parsers).items() if _takes_a_text(name, value)),
    *(parsers.integer(0, 9), parsers.seconds(), parsers.choice("a", "b"), int, float, _upside_down),
]


class TestDefaults:
    def test_are_the_documented_ones(self, tmp_path: Path) -> None:
        settings = sources(tmp_path).read(CORE_SETTINGS)
        assert settings[HOST] == "127.0.0.1"
        assert settings[PORT] == 8000
        assert str(settings[UPSTREAM_BASE_URL]) == "https://api.anthropic.com"
        assert settings[UPSTREAM_CONNECT_TIMEOUT] == 10
        assert settings[UPSTREAM_FIRST_BYTE_TIMEOUT] == 600
        assert settings[UPSTREAM_IDLE_TIMEOUT] == 600
        assert settings[DRAIN_TIMEOUT] == 30
        assert settings[MAX_CONCURRENT_REQUESTS] == 10_000
        assert settings[MAX_BODY_SIZE] == 500 * 1024 * 1024
        assert settings[DEFAULT_ANTHROPIC_VERSION] == "2023-06-01"
        assert settings[SSE_KEEPALIVE_INTERVAL] == 0
        assert settings[UPSTREAM_AUTH_SCHEME] == "x-api-key"
        assert settings[REUSE_PORT] is False
        assert upstream_key(settings) is None
        assert settings.variable(PORT) is None

    def test_every_setting_is_declared_once(self) -> None:
        names = [setting.name for setting in CORE_SETTINGS]
        assert len(set(names)) == len(names)

    def test_help_is_a_phrase_then_sentences(self) -> None:
        for setting in (*CORE_SETTINGS, *Plugins.load().declared_settings()):
            phrase, *sentences = re.split(r"\. (?=[A-Z0-9])", setting.help)
            assert re.match(r"[a-z]|[A-Z]{3}|http://", phrase), setting.name
            assert setting.help.endswith(".") == bool(sentences), setting.name

    def test_the_core_declares_no_token(self) -> None:
        assert not [setting for setting in CORE_SETTINGS if "AUTH_TOKEN" in setting.name]


class TestPrecedence:
    @pytest.mark.parametrize(
        ("flags", "environment", "file", "port"),
        [
            ({"PORT": "1"}, {"PORT": "2"}, "PORT=3", 1),
            ({}, {"PORT": "2"}, "PORT=3", 2),
            ({}, {}, "PORT=3", 3),
            ({}, {}, None, 8000),
        ],
    )
    def test_flags_environment_file_default(
        self,
        tmp_path: Path,
        flags: dict[str, str],
        environment: dict[str, str],
        file: str | None,
        port: int,
    ) -> None:
        read = sources(tmp_path, flags=flags, environment=environment, file=file)
        assert read.read(CORE_SETTINGS)[PORT] == port

    def test_a_blank_of_higher_precedence_is_not_skipped(self, tmp_path: Path) -> None:
        read = sources(tmp_path, environment={"AUTH_TOKEN": ""}, file=f"AUTH_TOKEN={CANARY}")
        assert faults_of(read, TOKENS) == (
            "AUTH_TOKEN is set but empty: give it a value or unset it",
        )

    @pytest.mark.parametrize(
        ("environment", "file", "key", "variable"),
        [
            ({"UPSTREAM_API_KEY": "own", "ANTHROPIC_API_KEY": "other"}, None, "own", "UPSTREAM"),
            ({"ANTHROPIC_API_KEY": "other"}, None, "other", "ANTHROPIC"),
            ({"ANTHROPIC_API_KEY": "other"}, "UPSTREAM_API_KEY=own", "own", "UPSTREAM"),
            ({}, "ANTHROPIC_API_KEY=other", "other", "ANTHROPIC"),
        ],
    )
    def test_a_fallback_is_asked_last(
        self,
        tmp_path: Path,
        environment: dict[str, str],
        file: str | None,
        key: str,
        variable: str,
    ) -> None:
        settings = sources(tmp_path, environment=environment, file=file).read(CORE_SETTINGS)
        assert upstream_key(settings) == Secret(key)
        assert settings.variable(UPSTREAM_API_KEY) == f"{variable}_API_KEY"

    @pytest.mark.parametrize("blank", ["", "  ", "\t"])
    def test_a_blank_fallback_is_absent(self, tmp_path: Path, blank: str) -> None:
        read = sources(tmp_path, environment={"ANTHROPIC_API_KEY": blank})
        assert upstream_key(read.read(CORE_SETTINGS)) is None

    def test_the_key_file_goes_before_the_fallback(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("from-file\n")
        environment = {
            "UPSTREAM_API_KEY_FILE": str(tmp_path / "key"),
            "ANTHROPIC_API_KEY": "from-fallback",
        }
        settings = sources(tmp_path, environment=environment).read(CORE_SETTINGS)
        assert upstream_key(settings) == Secret("from-file")
        assert contradictions(settings) == ()

    def test_the_proxy_variables_of_other_programs_are_read(self, tmp_path: Path) -> None:
        environment = {"https_proxy": "http://proxy.example:3128", "no_proxy": "a.example,10.0.0.1"}
        settings = sources(tmp_path, environment=environment).read(CORE_SETTINGS)
        assert settings[HTTPS_PROXY] == EgressProxy("proxy.example", 3128)
        assert settings[NO_PROXY] == ("a.example", "10.0.0.1")

    @pytest.mark.parametrize("place", ["environment", "file"])
    def test_anthropic_base_url_never_leads_upstream(self, tmp_path: Path, place: str) -> None:
        name, url = "ANTHROPIC_BASE_URL", "http://127.0.0.1:8000"
        read = (
            sources(tmp_path, environment={name: url})
            if place == "environment"
            else sources(tmp_path, file=f"{name}={url}")
        )
        assert read.read(CORE_SETTINGS)[UPSTREAM_BASE_URL] == UPSTREAM_BASE_URL.default

    def test_blanks_around_a_value_are_not_part_of_it(self, tmp_path: Path) -> None:
        read = sources(tmp_path, environment={"AUTH_TOKEN": f" {CANARY}\n"})
        assert read.read([TOKENS])[TOKENS] == (Secret(CANARY),)


class TestBlank:
    @pytest.mark.parametrize("setting", [each for each in CORE_SETTINGS if not each.blank])
    @pytest.mark.parametrize("blank", ["", "   "])
    def test_is_a_fault_that_names_the_variable_and_the_mend(
        self, tmp_path: Path, setting: Setting[Any], blank: str
    ) -> None:
        read = sources(tmp_path, environment={setting.name: blank})
        assert faults_of(read) == (f"{setting.name} is set but empty: give it a value or unset it",)

    @pytest.mark.parametrize(
        "setting", [HTTPS_PROXY, NO_PROXY, DISABLED_PLUGINS, TRUSTED_PROXIES, ALLOWED_HOSTS]
    )
    def test_means_none_where_none_makes_sense(self, tmp_path: Path, setting: Setting[Any]) -> None:
        read = sources(tmp_path, environment={setting.name: " "})
        assert read.read(CORE_SETTINGS)[setting] == setting.default

    def test_in_the_file_names_its_line(self, tmp_path: Path) -> None:
        (fault,) = faults_of(sources(tmp_path, file="\n# mine\nAUTH_TOKEN=\n"), TOKENS)
        assert fault == (
            "AUTH_TOKEN is set but empty: give it a value or unset it "
            f"({tmp_path / '.env'}, line 3)"
        )


class TestFaults:
    def test_are_collected(self, tmp_path: Path) -> None:
        read = sources(
            tmp_path,
            flags={"PORT": "http"},
            environment={"LOG_LEVEL": "loud"},
            file="MAX_BODY_SIZE=lots",
        )
        port, size, level = faults_of(read)
        assert port == (
            "PORT must be a whole number from 0 to 65535, not 'http' (on the command line)"
        )
        assert size.startswith("MAX_BODY_SIZE must be a number of bytes such as 1048576, 32MB")
        assert size.endswith("not 'lots' " + f"({tmp_path / '.env'}, line 1)")
        assert level == "LOG_LEVEL must be one of debug, info, warning, error, not 'loud'"

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("UPSTREAM_API_KEY", f"{CANARY} {CANARY}"),
            ("UPSTREAM_API_KEY", f"{CANARY}\x00"),
            ("ANTHROPIC_API_KEY", f"{CANARY} {CANARY}"),
            ("UPSTREAM_API_KEY_FILE", CANARY),
            ("HTTPS_PROXY", f"socks5://u:{CANARY}@proxy.example"),
            ("HTTPS_PROXY", f"http://u:{CANARY}@proxy.example/path"),
            ("HTTPS_PROXY", f"http://u:{CANARY}@:3128"),
            ("HTTPS_PROXY", f"http://u:{CANARY}@proxy.example:99999"),
            ("UPSTREAM_BASE_URL", f"https://u:{CANARY}@api.example"),
            ("UPSTREAM_BASE_URL", f"u:{CANARY}@api.example"),
            ("UPSTREAM_BASE_URL", f"https://u:{CANARY}"),
            ("UPSTREAM_BASE_URL", f"https://api.example?key={CANARY}"),
        ],
    )
    def test_never_repeat_a_secret(self, tmp_path: Path, variable: str, text: str) -> None:
        (fault,) = faults_of(sources(tmp_path, environment={variable: text}))
        assert fault.startswith(f"{variable} must ")
        assert CANARY not in fault

    @pytest.mark.parametrize(
        "text", [CANARY, f"a={CANARY} {CANARY[:9]}", "zq", f"zq=1, {CANARY}/ü"]
    )
    @pytest.mark.parametrize("parse", EVERY_PARSER)
    def test_of_any_parser_quote_no_part_of_a_secret(
        self, tmp_path: Path, parse: Callable[[str], object], text: str
    ) -> None:
        setting = Setting("PIN", parse, default=None, help="Anything.", secret=True)
        try:
            sources(tmp_path, environment={"PIN": text}).read([setting])
        except ConfigurationError as error:
            (fault,) = error.faults
            assert fault.startswith("PIN ")
            pieces = re.findall(r"\w{2,}", text.casefold())
            assert not [piece for piece in pieces if piece in fault.casefold()]


class TestUnknownNames:
    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("UPSTREAM_URL", "UPSTREAM_BASE_URL"),  # a word left out
            ("UPSTREAM_BASE_URI", "UPSTREAM_BASE_URL"),
            ("AUTH_TOKN", "AUTH_TOKEN"),
            ("AUTH_TOKENS", "AUTH_TOKEN"),
            ("auth_token", "AUTH_TOKEN"),
            ("AUTH-TOKEN", "AUTH_TOKEN"),
            ("AUTHTOKEN", "AUTH_TOKEN"),
            ("PROT", "PORT"),
            ("Https_Proxy", "HTTPS_PROXY"),
        ],
    )
    def test_near_a_setting_are_told(self, tmp_path: Path, name: str, meant: str) -> None:
        declared = [*CORE_SETTINGS, TOKENS]
        in_file = sources(tmp_path, file=f"PORT=1\n{name}=x\n")
        assert in_file.misspelt(declared) == (
            f"{tmp_path / '.env'}, line 2: unknown setting {name}: did you mean {meant}?",
        )
        in_environment = sources(tmp_path, environment={name: CANARY}, file="")
        assert in_environment.misspelt(declared) == ()
        assert list(in_environment.warnings(declared)) == [
            f"{name} in the environment is not read: did you mean {meant}?"
        ]

    @pytest.mark.parametrize(
        "name",
        [
            *("HOME", "PATH", "HTTP_PROXY", "http_proxy", "OPENAI_API_KEY", "SSL_CERT"),
            *("ANTHROPIC_AUTH_TOKEN", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "DATABASE_URL"),
        ],
    )
    def test_of_other_programs_are_near_none(self, tmp_path: Path, name: str) -> None:
        declared = [*CORE_SETTINGS, *Plugins.load().declared_settings()]
        read = sources(tmp_path, environment={name: "x"}, file=f"{name}=x")
        assert read.misspelt(declared) == ()
        (line,) = read.warnings(declared)
        assert line.endswith(".env: 1 name that is no setting of tornadoproxy: ignored")

    def test_in_the_file_are_counted_and_not_repeated(self, tmp_path: Path) -> None:
        # a credential in base64 ends in =, and so looks like a name with a value
        read = sources(tmp_path, file=f"{CANARY}==\nPORT=1\nTEAM_{CANARY}=x\n")
        assert read.misspelt(CORE_SETTINGS) == ()
        (line,) = read.warnings(CORE_SETTINGS)
        assert line.endswith(".env: 2 names that are no setting of tornadoproxy: ignored")
        assert CANARY not in line

    def test_of_a_client_s_base_url_has_a_hint(self, tmp_path: Path) -> None:
        read = sources(tmp_path, file="ANTHROPIC_BASE_URL=http://127.0.0.1:8000")
        _, hint = read.warnings(CORE_SETTINGS)
        assert "set UPSTREAM_BASE_URL for another upstream" in hint

    def test_fallbacks_are_known(self, tmp_path: Path) -> None:
        file = "ANTHROPIC_API_KEY=x\nhttps_proxy=http://p.example:1\nno_proxy=x\n"
        (tmp_path / ".env").touch(mode=0o600)
        read = sources(tmp_path, file=file)
        assert (read.misspelt(CORE_SETTINGS), list(read.warnings(CORE_SETTINGS))) == ((), [])


class TestModes:
    """Who else on the machine can do what with a file."""

    DATABASE = Setting("SHOP_DB", parsers.path, default=None, help="")

    @pytest.mark.parametrize(
        ("variable", "safe", "mode", "told"),
        [
            ("UPSTREAM_API_KEY_FILE", 0o640, 0o644, "can read it: chmod o-r "),
            ("TOKEN_FILE", 0o640, 0o604, "can read it: chmod o-r "),
            ("TLS_KEY", 0o640, 0o644, "can read it: chmod o-r "),
            ("SHOP_DB", 0o664, 0o666, "can write it: chmod o-w "),
        ],
    )
    def test_of_a_file_are_warned_of(
        self, tmp_path: Path, variable: str, safe: int, mode: int, told: str
    ) -> None:
        path = tmp_path / "file"
        path.write_text(CANARY)
        token: Setting[Any] = Setting("TOKEN_FILE", parsers.secrets_file, default=(), help="")
        declared = [*CORE_SETTINGS, self.DATABASE, token]
        read = sources(tmp_path, environment={variable: str(path)})
        path.chmod(safe)
        assert list(read.warnings(declared)) == []
        path.chmod(mode)
        (line,) = read.warnings(declared)
        assert line == f"{variable}={path}: every user of this machine {told}{path}"

    @pytest.mark.parametrize(
        ("content", "mode", "count"),
        [
            (f"UPSTREAM_API_KEY={CANARY}", 0o644, 1),
            (f"UPSTREAM_API_KEY={CANARY}", 0o640, 0),
            ("PORT=1", 0o644, 0),
        ],
    )
    def test_of_the_env_file_count_if_it_holds_a_secret(
        self, tmp_path: Path, content: str, mode: int, count: int
    ) -> None:
        read = sources(tmp_path, file=content)
        (tmp_path / ".env").chmod(mode)
        lines = list(read.warnings(CORE_SETTINGS))
        assert len(lines) == count
        assert all(line.endswith(f"chmod o-r {tmp_path / '.env'}") for line in lines)

    def test_of_a_file_that_is_not_there_are_not_looked_at(self, tmp_path: Path) -> None:
        read = sources(tmp_path, environment={"SHOP_DB": "absent\0"})
        assert list(read.warnings([self.DATABASE])) == []


class TestPlaceholders:
    SECRET_ASSIGNED = re.compile(
        r"\b([A-Z_]+_(?:TOKEN|KEY)|OTEL_EXPORTER_OTLP_HEADERS)=\"?([^\s\"`]+)"
    )
    CLIENT_SENDS = re.compile(r"(?:api_key=|apiKey: |ANTHROPIC_AUTH_TOKEN=)\"?([\w-]+)")

    def test_of_the_documentation_are_refused(self, tmp_path: Path) -> None:
        root = Path(__file__).parents[2]
        files = [root / "README.md", root / ".env.example", *root.glob("docs/*.md")]
        secret = {
            each.name: each
            for each in (*CORE_SETTINGS, *Plugins.load().declared_settings())
            if each.secret
        }
        found = {
            (name, value)
            for file in files
            for name, value in self.SECRET_ASSIGNED.findall(file.read_text())
            if name in secret and not value.startswith("$")
        }
        # what clients are shown in a token's place, too; a plugin's own credentials are others
        for name in ("README.md", "docs/anthropic.md", "docs/openai.md"):
            shown = set(self.CLIENT_SENDS.findall((root / name).read_text())) - {"dummy", "null"}
            assert shown
            found |= {("AUTH_TOKEN", value) for value in shown}
        assert len(found) >= 5
        for name, value in found:
            (fault,) = faults_of(sources(tmp_path, environment={name: value}), secret[name])
            assert fault.startswith(name)

    @pytest.mark.parametrize(
        "text", ["your-secret-token-here", "YOUR-KEY", "sk-ant-your-key", "ops=change-me", "…"]
    )
    def test_are_refused_by_every_parser_of_secrets(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "secret"
        path.write_text(text)
        for parse, value in (
            (parsers.secret, text),
            (parsers.secrets, f"{CANARY} {text}"),
            (parsers.secret_file, str(path)),
            (parsers.secrets_file, str(path)),
        ):
            with pytest.raises(ValueError, match="the documentation's placeholder"):
                parse(value)


class TestEnvFile:
    @pytest.mark.parametrize(
        ("content", "value"),
        [
            ("AUTH_TOKEN=abc", "abc"),
            ("AUTH_TOKEN=abc\n", "abc"),
            ("AUTH_TOKEN=abc\r\n", "abc"),
            ("\ufeffAUTH_TOKEN=abc\n", "abc"),
            ("export AUTH_TOKEN=abc", "abc"),
            ("AUTH_TOKEN = abc", "abc"),
            ("AUTH_TOKEN='abc'", "abc"),
            ('AUTH_TOKEN="abc"', "abc"),
            ("AUTH_TOKEN=abc # mine", "abc"),
            ("AUTH_TOKEN=abc#def", "abc#def"),
            ("AUTH_TOKEN='abc # def'", "abc # def"),
            ("# first\n\n  AUTH_TOKEN=abc\n# last", "abc"),
            ("AUTH_TOKEN=$HOME/${HOME}", "$HOME/${HOME}"),
            ("AUTH_TOKEN=a=b,c", "a=b,c"),
            ("AUTH_TOKEN='schlüssel'", "schlüssel"),
            ("AUTH_TOKEN=old\nAUTH_TOKEN=new", "new"),
            ("AUTH_TOKEN=a\u2028b", "a\u2028b"),
            ("AUTH_TOKEN=", ""),
        ],
    )
    def test_forms_of_a_value(self, tmp_path: Path, content: str, value: str) -> None:
        read = sources(tmp_path, file=content).env_file
        assert read.faults == ()
        assert read.entries["AUTH_TOKEN"].value == value

    @pytest.mark.parametrize(
        ("content", "line", "told"),
        [
            (f"PORT=1\n\n'{CANARY}\n", 3, "cannot be parsed: write NAME=value"),
            (f'AUTH_TOKEN="{CANARY}\n', 1, "cannot be parsed: write NAME=value"),
            (f"AUTH_TOKEN='a' {CANARY}\n", 1, "cannot be parsed: write NAME=value"),
            (f"PORT=1\n{CANARY}\n", 2, "has no =: write NAME=value"),
            (f"export {CANARY}\n", 1, "has no =: write NAME=value"),
            (f'A="{CANARY}\nB="\n', 1, "a quote is not closed on its line: close it"),
        ],
    )
    def test_a_bad_line_is_named_by_number_and_not_repeated(
        self, tmp_path: Path, content: str, line: int, told: str
    ) -> None:
        read = sources(tmp_path, file=content).env_file
        assert read.faults == (f"{tmp_path / '.env'}, line {line}: {told}",)

    def test_every_bad_line_is_told(self, tmp_path: Path) -> None:
        read = sources(tmp_path, file="A\nPORT=1\n'\nB\n").env_file
        assert [re.findall(r"line (\d)", fault) for fault in read.faults] == [["1"], ["3"], ["4"]]
        assert read.entries["PORT"].value == "1"

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"PORT=1\0", "is binary: mend or remove it"),
            (b"PORT=\xff\xfe", "is not text in UTF-8: mend or remove it"),
            ("PORT=1".encode("utf-16"), "is not text in UTF-8: mend or remove it"),
        ],
    )
    def test_that_is_not_text(self, tmp_path: Path, content: bytes, told: str) -> None:
        assert sources(tmp_path, file=content).env_file.faults == (f"{tmp_path / '.env'} {told}",)

    def test_that_is_a_directory(self, tmp_path: Path) -> None:
        (tmp_path / ".env").mkdir()
        assert sources(tmp_path).env_file.faults == (
            f"{tmp_path / '.env'} is not a regular file: mend or remove it",
        )

    def test_that_is_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / ".env")
        assert sources(tmp_path).env_file.faults == (
            f"{tmp_path / '.env'} is not a regular file: mend or remove it",
        )

    def test_may_be_turned_off(self) -> None:
        assert env_file.read(Path(os.devnull), required=True).faults == ()

    def test_that_cannot_be_opened(self, tmp_path: Path) -> None:
        path = tmp_path / ".env"
        path.symlink_to(path)
        (fault,) = sources(tmp_path).env_file.faults
        assert fault.startswith(f"{path} cannot be read (Too many levels of symbolic links)")

    def test_that_does_not_exist(self, tmp_path: Path) -> None:
        path = tmp_path / ".env"
        assert env_file.read(path, required=False).faults == ()
        assert env_file.read(path, required=True).faults == (
            f"{path} does not exist: create it or name another",
        )

    def test_that_is_a_link_to_nowhere(self, tmp_path: Path) -> None:
        path = tmp_path / ".env"
        path.symlink_to(tmp_path / "moved-away")
        assert env_file.read(path, required=False).faults == (
            f"{path} does not exist: create it or name another",
        )

    def test_its_repr_hides_the_values(self, tmp_path: Path) -> None:
        read = sources(
            tmp_path,
            flags={"X": CANARY},
            environment={"Y": CANARY},
            file=f"AUTH_TOKEN={CANARY}",
        )
        assert CANARY not in repr(read)


class TestParsers:
    @pytest.mark.parametrize(
        ("parse", "text", "value"),
        [
            (parsers.text, "a b", "a b"),
            (parsers.date, "2026-10-21", "2026-10-21"),
            (parsers.integer(0, 65_535), "0", 0),
            (parsers.integer(0, 65_535), "65535", 65_535),
            (parsers.integer(), "-3", -3),
            (parsers.integer(minimum=1), "12", 12),
            (parsers.seconds(), "0", 0.0),
            (parsers.seconds(), "0.5", 0.5),
            (parsers.seconds(), ".5", 0.5),
            (parsers.seconds(), "600", 600.0),
            (parsers.size, "1048576", 1_048_576),
            (parsers.size, "1b", 1),
            (parsers.size, "2kB", 2048),
            (parsers.size, "2k", 2048),
            (parsers.size, "32MB", 32 << 20),
            (parsers.size, "32 MiB", 32 << 20),
            (parsers.size, "1.5GB", 3 << 29),
            (parsers.size, "1.5 gib", 3 << 29),
            (parsers.size, "1TB", 1 << 40),
            (parsers.boolean, "1", True),
            (parsers.boolean, "TRUE", True),
            (parsers.boolean, "yes", True),
            (parsers.boolean, "On", True),
            (parsers.boolean, "0", False),
            (parsers.boolean, "false", False),
            (parsers.boolean, "No", False),
            (parsers.boolean, "off", False),
            (parsers.choice("a", "b"), "B", "b"),
            (parsers.words, "", ()),
            (parsers.words, "a", ("a",)),
            (parsers.words, "a, b  c,,\td", ("a", "b", "c", "d")),
            (parsers.secret, "a,b", Secret("a,b")),
            (parsers.secret, "schlüssel", Secret("schlüssel")),
            (parsers.secret, "\udcff", Secret(b"\xff")),
            (parsers.secrets, "one", (Secret("one"),)),
            (parsers.secrets, "one  two,three", (Secret("one"), Secret("two,three"))),
            (parsers.networks, "", ()),
            (
                parsers.networks,
                "10.0.0.0/8, 127.0.0.1 fd00::/8",
                (ip_network("10.0.0.0/8"), ip_network("127.0.0.1/32"), ip_network("fd00::/8")),
            ),
            (parsers.host, "127.0.0.1", "127.0.0.1"),
            (parsers.host, "::", "::"),
            (parsers.host, "[::1]", "::1"),
            (parsers.host, "0:0::1", "::1"),
            (parsers.host, "Proxy.Example.", "proxy.example"),
            (parsers.host, "proxy_1", "proxy_1"),
            (parsers.hosts, "A.example [::1]", ("a.example", "::1")),
            (parsers.egress_proxy, "", None),
            (parsers.egress_proxy, "http://p.example:3128", EgressProxy("p.example", 3128)),
            (parsers.egress_proxy, "HTTP://p.example/", EgressProxy("p.example", 80)),
            (parsers.egress_proxy, "p.example:3128", EgressProxy("p.example", 3128)),
            (parsers.egress_proxy, "http://[::1]:1", EgressProxy("::1", 1)),
            (
                parsers.egress_proxy,
                "http://u:p%40%3a@p.example:1",
                EgressProxy("p.example", 1, Secret("u:p@:")),
            ),
        ],
    )
    def test_accept(self, parse: Callable[[str], object], text: str, value: object) -> None:
        parsed = parse(text)
        assert parsed == value
        assert type(parsed) is type(value)

    @pytest.mark.parametrize(
        ("parse", "texts", "told"),
        [
            (parsers.text, ["a\nb", "a\0b"], "must be one line"),
            (parsers.date, ["2023-6-1", "latest", "2023-06-01\n"], "a date such as 2023-06-01"),
            (
                parsers.integer(0, 65_535),
                ["", "-1", "65536", "1.5", "1_0", "٣", "0x1", "9" * 5000, "1 2"],
                "must be a whole number from 0 to 65535, not ",
            ),
            (parsers.integer(minimum=1), ["0"], "must be a whole number of at least 1, not '0'"),
            (parsers.integer(maximum=1), ["2"], "must be a whole number of at most 1, not '2'"),
            (
                parsers.seconds(),
                ["", "-1", "nan", "inf", "-inf", "1e3", "10s", "1_0", "٣", "1,5", "9" * 400],
                "must be a number of seconds from 0 to 31536000, without a unit, not ",
            ),
            (parsers.seconds(minimum=0.001), ["0", "0.0001"], "from 0.001 to 31536000"),
            (
                parsers.size,
                ["", "0", "0.1", "-1", "1e3", "lots", "inf", "nan", "MB", "1 PB", "1 M B"],
                "must be a number of bytes such as 1048576, 32MB or 1.5GB, not ",
            ),
            (parsers.boolean, ["", "2", "maybe", "truee"], "must be yes or no, not "),
            (parsers.choice("a", "b"), ["", "c", "a b"], "must be one of a, b, not "),
            (parsers.words, ["a\nb"], "must be one line"),
            (parsers.secret, ["a b", "a\nb"], "must be one value, without blanks inside it"),
            (parsers.secret, ["a\0b", "a\x7f"], "must hold no control characters"),
            (parsers.secrets, ["a b\x01"], "must hold no control characters"),
            (
                parsers.networks,
                ["10.0.0.1/8"],
                "must be networks without host bits: write 10.0.0.0/8, not '10.0.0.1/8'",
            ),
            (
                parsers.networks,
                ["10.0.0.0/33", "proxy.example", "::1, x"],
                "must be IP addresses or networks such as 10.0.0.0/8, not ",
            ),
            (
                parsers.host,
                [
                    "",
                    "*",
                    "a b",
                    "a:80",
                    "127.0.0.1:80",
                    "300.0.0.1",
                    "127.1",
                    "http://a",
                    "[a]",
                    ":::",
                    "-a",
                    "a..b",
                    "a" * 64,
                    ".",
                ],
                "must be a host name or an IP address, without scheme and port, not ",
            ),
            (parsers.hosts, ["a.example, b.example:80"], "not 'b.example:80'"),
            (
                parsers.egress_proxy,
                ["https://p.example", "socks5://p.example"],
                "must begin with http://: no other kind of proxy is known",
            ),
            (
                parsers.egress_proxy,
                ["http://p.example/x", "http://p.example?x", "http://a b"],
                "must be http://host:port, perhaps with user:password@",
            ),
            (parsers.egress_proxy, ["http://u:%0a@p"], "no control characters in its user"),
            (parsers.egress_proxy, ["http://", "http://:1", "http://p:x"], "must name a host"),
        ],
    )
    def test_refuse(self, parse: Callable[[str], object], texts: list[str], told: str) -> None:
        for text in texts:
            with pytest.raises(ValueError, match=re.escape(told)):
                parse(text)


class TestBaseURL:
    @pytest.mark.parametrize(
        ("text", "url", "authority"),
        [
            ("https://api.anthropic.com", "https://api.anthropic.com", "api.anthropic.com"),
            ("https://api.anthropic.com/", "https://api.anthropic.com", "api.anthropic.com"),
            ("https://api.anthropic.com:443", "https://api.anthropic.com", "api.anthropic.com"),
            ("HTTPS://API.Anthropic.COM.", "https://api.anthropic.com", "api.anthropic.com"),
            ("http://h:80", "http://h", "h"),
            ("https://h:80", "https://h:80", "h:80"),
            ("http://h:443", "http://h:443", "h:443"),
            ("http://127.0.0.1:9", "http://127.0.0.1:9", "127.0.0.1:9"),
            ("http://[0:0::1]", "http://[::1]", "[::1]"),
            ("http://[::1]:9/a", "http://[::1]:9/a", "[::1]:9"),
            ("https://h/a/b/", "https://h/a/b", "h"),
            ("https://h/A/%C3%BC/~x;y=1", "https://h/A/%C3%BC/~x;y=1", "h"),
            ("https://h/v1/account/anthropic", "https://h/v1/account/anthropic", "h"),
            ("https://h/v10", "https://h/v10", "h"),
        ],
    )
    def test_is_kept(self, text: str, url: str, authority: str) -> None:
        parsed = parsers.base_url(text)
        assert str(parsed) == url
        assert parsed.authority == authority
        assert parsed.origin == f"{parsed.scheme}://{authority}"
        assert parsers.base_url(str(parsed)) == parsed

    def test_has_its_parts(self) -> None:
        assert parsers.base_url("https://[::1]/a/b/") == BaseURL("https", "::1", 443, "/a/b")

    @pytest.mark.parametrize(
        ("texts", "told"),
        [
            (["https://ü.example", "https://h/ü"], "must be ASCII"),
            (["https://a b", "https://h/a\tb", "https://h\n", "https://h/\x7f"], "must not hold"),
            (["h", "//h", "ftp://h", "https:/h", "https:h", "/a"], "must begin with https:// or"),
            (["https://h?a=b", "https://h/#a", "https://h/a?"], "neither a query nor a fragment"),
            (["https://u@h", "https://u:p@h", "https://@h"], "must hold no user or password"),
            (
                [
                    "https://",
                    "https:///a",
                    "https://h:",
                    "https://h:x",
                    "https://h:123456",
                    "https://::1",
                    "https://[::1",
                    "https://[h]",
                    "https://[127.0.0.1]",
                    "https://[fe80::1%25eth0]",
                    "https://1.2.3",
                    "https://a\\b",
                    "https://-",
                ],
                "must name a host, and perhaps a port",
            ),
            (["https://h:0", "https://h:65536"], "must have a port from 1 to 65535"),
            (
                ["https://h/a\\b", "https://h/%zz", "https://h/%", 'https://h/"'],
                "no character that",
            ),
            (["https://h/a%2Fb", "https://h/a%5cb"], "no encoded slash or backslash"),
            (["https://h//a", "https://h/a//b"], "must hold no double slash"),
            (
                ["https://h/.", "https://h/../a", "https://h/a/%2e%2E", "https://h/.%2e/a"],
                "must hold no . or .. as a part of its path",
            ),
            (
                ["https://h/v1", "https://h/v1/", "https://h/a/v1"],
                "must not end in /v1: every request's path begins with /v1 already, leave it out",
            ),
            (["https://h/v1/messages"], "must not end in /v1/messages"),
        ],
    )
    def test_is_refused(self, texts: list[str], told: str) -> None:
        for text in texts:
            with pytest.raises(ValueError, match=re.escape(told)):
                parsers.base_url(text)


FILE_PARSERS = [
    parsers.secret_file,
    parsers.secrets_file,
    parsers.readable_file,
    parsers.certificates_file,
]


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "secrets"),
        [
            (b"one", [b"one"]),
            (b"  one \r\n\n", [b"one"]),
            (b"\xef\xbb\xbfone\n", [b"one"]),
            (b"\xff\xfe,\n", [b"\xff\xfe,"]),
            (b"one\ntwo three\n", [b"one", b"two", b"three"]),
        ],
    )
    def test_secrets(self, tmp_path: Path, content: bytes, secrets: list[bytes]) -> None:
        path = tmp_path / "secret"
        path.write_bytes(content)
        assert [each.reveal() for each in parsers.secrets_file(str(path))] == secrets
        if len(secrets) == 1:
            assert parsers.secret_file(str(path)).reveal() == secrets[0]

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "names an empty file: write the secret into it"),
            (b" \n", "names an empty file: write the secret into it"),
            (b"\xef\xbb\xbf\n", "names an empty file: write the secret into it"),
            (f"{CANARY}\0".encode(), "must name a text file: its secrets must hold no control"),
            (f"{CANARY} {CANARY}".encode(), "must name a file that holds one value, without"),
            (CANARY.encode() * 8192, "must name a file that holds a secret, but that one is over"),
        ],
    )
    def test_that_hold_no_secret(self, tmp_path: Path, content: bytes, told: str) -> None:
        path = tmp_path / "secret"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(told)) as raised:
            parsers.secret_file(str(path))
        assert CANARY not in str(raised.value)

    @pytest.mark.parametrize("parse", FILE_PARSERS)
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("absent", "No such file or directory"),
            ("", "Is a directory"),
            ("a\0b", "it is not a path"),
        ],
    )
    def test_that_cannot_be_read(
        self, tmp_path: Path, parse: Callable[[str], object], name: str, reason: str
    ) -> None:
        with pytest.raises(ValueError, match=f"must name a readable file.*: {reason}$"):
            parse(f"{tmp_path}/{name}")

    @pytest.mark.parametrize("parse", FILE_PARSERS)
    def test_that_are_pipes_are_not_waited_for(
        self, tmp_path: Path, parse: Callable[[str], object]
    ) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match=r"must name a readable file.*: Not a regular file$"):
            parse(str(tmp_path / "pipe"))

    def test_readable(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.touch()
        assert parsers.readable_file(str(path)) == path

    def test_certificates(self, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        trustme.CA().cert_pem.write_to_path(str(path))
        read = sources(tmp_path, environment={"UPSTREAM_CA_FILE": str(path)})
        assert read.read(CORE_SETTINGS)[UPSTREAM_CA_FILE] == path

    def test_without_certificates(self, tmp_path: Path) -> None:
        path = tmp_path / "ca.pem"
        path.write_text("-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
        with pytest.raises(ValueError, match="must name a PEM file with certificates"):
            parsers.certificates_file(str(path))


class TestContradictions:
    KEYED = Settings.defaults().replace({UPSTREAM_API_KEY: Secret("k")})

    def test_there_are_none_with_a_key(self) -> None:
        assert contradictions(self.KEYED) == ()

    def test_no_key_for_the_default_upstream(self) -> None:
        (fault,) = contradictions(Settings.defaults())
        for way_out in ("UPSTREAM_API_KEY", "ANTHROPIC_API_KEY", "UPSTREAM_BASE_URL"):
            assert re.search(rf"\b{way_out}\b", fault)
        assert "`python -m tornadoproxy demo`" in fault

    def test_another_upstream_needs_no_key(self) -> None:
        url = parsers.base_url("https://gateway.example")
        assert contradictions(Settings.defaults().replace({UPSTREAM_BASE_URL: url})) == ()

    def test_two_keys(self) -> None:
        settings = self.KEYED.replace({UPSTREAM_API_KEY_FILE: Secret("f")})
        assert contradictions(settings) == (
            "UPSTREAM_API_KEY and UPSTREAM_API_KEY_FILE are both set: unset one of them",
        )

    @pytest.mark.parametrize(("given", "missing"), [(TLS_CERT, "TLS_KEY"), (TLS_KEY, "TLS_CERT")])
    def test_half_of_tls(self, given: Setting[Path | None], missing: str) -> None:
        (fault,) = contradictions(self.KEYED.replace({given: Path("x.pem")}))
        assert fault.startswith(f"{given.name} is set without {missing}: set both, or neither")

    def test_a_pair_for_tls(self, tmp_path: Path) -> None:
        certificate, key = pair(tmp_path, "a")
        assert contradictions(self.KEYED.replace({TLS_CERT: certificate, TLS_KEY: key})) == ()

    def test_a_key_of_another_certificate(self, tmp_path: Path) -> None:
        certificate, _ = pair(tmp_path, "a")
        _, key = pair(tmp_path, "b")
        assert contradictions(self.KEYED.replace({TLS_CERT: certificate, TLS_KEY: key})) == (
            "TLS_CERT and TLS_KEY must be a certificate and its key in PEM: key values mismatch",
        )

    def test_an_encrypted_key_asks_nobody(self, tmp_path: Path) -> None:
        certificate, key = pair(tmp_path, "a")
        encrypt(key)
        (fault,) = contradictions(self.KEYED.replace({TLS_CERT: certificate, TLS_KEY: key}))
        assert fault.endswith("the key is encrypted, and there is nobody to ask for its password")

    @pytest.mark.parametrize("content", ["", "no"])
    def test_no_pem(self, tmp_path: Path, content: str) -> None:
        certificate, key = pair(tmp_path, "a")
        certificate.write_text(content)
        (fault,) = contradictions(self.KEYED.replace({TLS_CERT: certificate, TLS_KEY: key}))
        assert fault.startswith("TLS_CERT and TLS_KEY must be a certificate and its key in PEM: ")

    @pytest.mark.parametrize(
        ("host", "upstream"),
        [
            ("127.0.0.1", "http://127.0.0.1:8000"),
            ("127.0.0.1", "https://localhost:8000/a"),
            ("127.0.0.1", "http://[::1]:8000"),
            ("127.0.0.1", "http://0.0.0.0:8000"),
            ("0.0.0.0", "http://127.0.0.1:8000"),
            ("::", "http://proxy.localhost:8000"),
            ("::", "http://[::ffff:127.0.0.1]:8000"),
            ("10.0.0.1", "http://10.0.0.1:8000"),
            ("proxy.example", "http://PROXY.example:8000"),
        ],
    )
    def test_an_upstream_that_is_the_proxy_itself(self, host: str, upstream: str) -> None:
        settings = self.KEYED.replace({HOST: host, UPSTREAM_BASE_URL: parsers.base_url(upstream)})
        (fault,) = contradictions(settings)
        assert fault.startswith("UPSTREAM_BASE_URL is http")
        assert "where this proxy itself listens: set it to the API, or set another PORT" in fault

    @pytest.mark.parametrize(
        ("host", "upstream"),
        [
            ("127.0.0.1", "http://127.0.0.1:8001"),
            ("127.0.0.1", "https://10.0.0.1:8000"),
            ("10.0.0.1", "http://127.0.0.1:8000"),
            ("0.0.0.0", "https://gateway.example:8000"),
        ],
    )
    def test_an_upstream_that_is_another(self, host: str, upstream: str) -> None:
        settings = self.KEYED.replace({HOST: host, UPSTREAM_BASE_URL: parsers.base_url(upstream)})
        assert contradictions(settings) == ()

    @pytest.mark.parametrize(
        ("upstream", "is_refused"),
        [
            ("http://gateway.example", True),
            ("http://10.0.0.1:4000", True),
            ("http://litellm:4000/v", True),
            ("http://[fd00::1]", True),
            ("http://localhost.example", True),
            ("https://gateway.example", False),
            ("http://localhost:4000", False),
            ("http://127.0.0.9:4000", False),
            ("http://[::1]:4000", False),
        ],
    )
    def test_cleartext_upstream_elsewhere_takes_a_word(
        self, upstream: str, is_refused: bool
    ) -> None:
        settings = self.KEYED.replace({UPSTREAM_BASE_URL: parsers.base_url(upstream)})
        faults = contradictions(settings)
        assert ["UPSTREAM_ALLOW_CLEARTEXT=yes" in fault for fault in faults] == [True] * is_refused
        assert contradictions(settings.replace({UPSTREAM_ALLOW_CLEARTEXT: True})) == ()


class TestSettings:
    def test_hide_secrets(self, tmp_path: Path) -> None:
        environment = {
            "UPSTREAM_API_KEY": CANARY,
            "HTTPS_PROXY": f"http://u:{CANARY}@p.example:1",
            "AUTH_TOKEN": f"{CANARY} {CANARY}2",
        }
        settings = sources(tmp_path, environment=environment).read([*CORE_SETTINGS, TOKENS])
        for shown in (repr(settings), str(settings), repr(settings[HTTPS_PROXY])):
            assert CANARY not in shown
        assert "UPSTREAM_API_KEY=***" in repr(settings)
        assert "PORT=8000" in repr(settings)

    def test_replace_leaves_the_old_ones(self) -> None:
        old = Settings.defaults(TOKENS)
        new = old.replace({PORT: 1})
        assert (old[PORT], new[PORT]) == (8000, 1)
        assert new[HOST] == old[HOST]
        assert new.variable(PORT) == "PORT"
        assert old.changed(new) == (PORT,)
        assert old.changed(old.replace({})) == ()

    def test_know_only_what_is_declared(self) -> None:
        with pytest.raises(KeyError, match="AUTH_TOKEN is not declared"):
            Settings.defaults()[TOKENS]

    def test_of_two_with_one_name_are_two(self) -> None:
        other = Setting("PORT", parsers.text, default="x", help="Another.")
        settings = Settings.defaults(other)
        assert (settings[PORT], settings[other]) == (8000, "x")

    def test_have_flags_unless_secret(self) -> None:
        assert UPSTREAM_BASE_URL.flag == "--upstream-base-url"
        assert UPSTREAM_API_KEY.flag is None
        assert HTTPS_PROXY.flag is None

    @pytest.mark.parametrize("name", ["port", "1PORT", "MY PORT", "MY-PORT", ""])
    def test_have_names_in_capitals(self, name: str) -> None:
        with pytest.raises(ValueError, match="a setting's name is in capitals"):
            Setting(name, parsers.text, default="", help="")

    @pytest.mark.parametrize("name", ["HELP", "VERSION", "ENV_FILE"])
    def test_leave_the_programs_own_flags_alone(self, name: str) -> None:
        with pytest.raises(ValueError, match="would have a flag that is the program's own"):
            Setting(name, parsers.text, default="", help="")

    def test_log_level_is_read_in_any_case(self, tmp_path: Path) -> None:
        read = sources(tmp_path, environment={"LOG_LEVEL": "WARNING"})
        assert read.read(CORE_SETTINGS)[LOG_LEVEL] == "warning"


def pair(directory: Path, name: str) -> tuple[Path, Path]:
    """A certificate and its key, in two files."""
    issued = trustme.CA().issue_cert("localhost")
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    issued.private_key_pem.write_to_path(str(key))
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(str(certificate), append=index > 0)
    return certificate, key


def encrypt(key: Path) -> None:
    """Encrypts the private key in a file, in place."""
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
