"""``UPSTREAMS_FILE`` and ``UPSTREAM_API_KEYS``: the upstreams of the settings, and each fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from given import CANARY, faults_of, sources

from tornadoproxy import BaseURL, ConfigurationError, Settings, Upstream, UpstreamEntry
from tornadoproxy.config.consistency import contradictions
from tornadoproxy.config.core_settings import CORE_SETTINGS, UPSTREAMS_FILE
from tornadoproxy.config.upstreams import UpstreamsOrder
from tornadoproxy.config.upstreams_file import UpstreamEntries
from tornadoproxy.plugin.declarations import upstreams_of

ENTRY = '[[upstream]]\nname = "a"\nbase_url = "https://a.example"\n'  # its third line is 3
OTHER = ENTRY.replace('"a"', '"b"')


def read(directory: Path, text: str | bytes, file: str = "", **variables: str) -> Settings:
    """Return the settings of a process with `text` in its file, and `file` as its ``.env``."""
    path = directory / "upstreams.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    environment = {"UPSTREAMS_FILE": str(path), **variables}
    return sources(directory, environment=environment, file=file).read(CORE_SETTINGS)


def upstreams(settings: Settings) -> tuple[dict[str, Upstream], UpstreamsOrder]:
    found, order = upstreams_of([], settings)
    return {each.name: each for each in found}, order


def faults(directory: Path, text: str, **variables: str) -> list[str]:
    """Return the faults of a file, each after its line."""
    settings = read(directory, text, **variables)
    with pytest.raises(ConfigurationError) as refused:
        upstreams_of([], settings)
    assert CANARY not in str(refused.value)
    begin = f"{directory / 'upstreams.toml'}, line "
    return [fault.removeprefix(begin) for fault in refused.value.faults]


def test_entry_without_more_has_the_settings_defaults(tmp_path: Path) -> None:
    found, order = upstreams(read(tmp_path, ENTRY))
    assert found == {"a": Upstream(name="a", base_url=BaseURL("https", "a.example", 443))}
    assert order == UpstreamsOrder()


def test_entry_has_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{CANARY}\n")
    text = f"""
        order = "Listed"
        sticky = false
        pinned = "b"
        {ENTRY}api_key_file = "{tmp_path / "key"}"
        auth_scheme = "bearer"
        weight = 0.25
        max_concurrent = 7
        first_byte_timeout = 2
        idle_timeout = 0.5
        https_proxy = "http://proxy.example:3128"
        [upstream.models]
        "claude-*" = "eu.claude-*"
        {OTHER}api_key_env = "KEY_OF_B"
        models = ["m", "n*"]
    """
    settings = read(tmp_path, text, file=f"KEY_OF_B={CANARY}-b")
    found, order = upstreams(settings)
    a, b = found["a"], found["b"]
    assert order == UpstreamsOrder(listed=True, sticky=False, pinned="b")
    assert (a.api_key and a.api_key.reveal()) == CANARY.encode()
    assert (a.key_source, b.key_source) == (
        "api_key_file of the upstream 'a'",
        "api_key_env of the upstream 'b'",
    )
    assert (b.api_key and b.api_key.reveal()) == f"{CANARY}-b".encode()
    assert (a.auth_scheme, a.weight, a.max_concurrent) == ("bearer", 0.25, 7)
    assert (a.connect_timeout, a.first_byte_timeout, a.idle_timeout) == (None, 2, 0.5)
    assert a.egress_proxy is not None
    assert [each.model("claude-x") for each in (a, b)] == ["eu.claude-x", None]
    assert CANARY not in f"{settings!r}{a!r}{b}{settings[UPSTREAMS_FILE]!r}"


def test_file_with_tables_in_a_list_is_read(tmp_path: Path) -> None:
    text = 'upstream = [{name = "a", base_url = "https://a.example"}]'
    assert [*upstreams(read(tmp_path, text))[0]] == ["a"]
    assert faults(tmp_path, text.replace("base", "bad")) == [
        "1: base_url is missing: upstreams of the kind anthropic need it",
        "1: bad_url is unknown: did you mean base_url?",
    ]


@pytest.mark.parametrize(
    ("pattern", "there", "name", "expected"),
    [
        ("claude-*", "eu.claude-*", "claude-a", "eu.claude-a"),
        ("*", "x", "anything", "x"),
        ("a*a", "*", "a", None),
        ("a*a", "*", "aba", "b"),
        ("arn[1]*", "*", "arn[1]x", "x"),
        ("a?", "b", "ab", None),
        ("claude-a", "b", "claude-ab", None),
    ],
)
def test_name_of_a_model_there(pattern: str, there: str, name: str, expected: str | None) -> None:
    base_url = BaseURL("https", "a.example", 443)
    assert Upstream(name="a", base_url=base_url, models={pattern: there}).model(name) == expected


MODELS = '4: models must be names, ["a", "b"], or a table, {"a" = "its name there"}'
FAULTS: dict[str, tuple[str, list[str]]] = {
    "nothing": ("", ["1: there is no [[upstream]]: add one for each way to reach Claude"]),
    "one table": (
        '[upstream]\nname = "a"',
        ["1: there is no [[upstream]]: add one for each way to reach Claude"],
    ),
    "no name": (
        ENTRY.replace('name = "a"', ""),
        ["1: name is missing: every upstream has one"],
    ),
    "a wrong name": (
        ENTRY.replace('"a"', '"a b"'),
        ["2: name must be up to 64 letters, digits, dots, hyphens and underscores"],
    ),
    "two of one name": (
        f"{OTHER}{ENTRY}# a comment\n{ENTRY}",
        ["9: name is another upstream's too: rename one"],
    ),
    "unknown keys": (
        f'sticki = true\nsomething = 1\n{ENTRY}  "wieght" = 2\n{OTHER}key = "{CANARY}"',
        [
            "1: sticki is unknown: did you mean sticky?",
            "2: something is unknown",
            "6: wieght is unknown: did you mean weight?",
            "10: key is unknown: did you mean api_key?",
        ],
    ),
    "an unknown table": (
        f"{ENTRY}[upstream.model]\na = 1",
        ["4: model is unknown: did you mean models?"],
    ),
    "an unknown kind": (
        f'{ENTRY}kind = "antropic"\nregion = "x"\n{OTHER}kind = "azure"',
        [
            "4: kind is unknown, 'antropic': did you mean anthropic?",
            "9: kind is unknown, 'azure'; known kinds are anthropic",
        ],
    ),
    "no base_url": (
        '[[upstream]]\nname = "a"',
        ["1: base_url is missing: upstreams of the kind anthropic need it"],
    ),
    "two keys": (
        f'{ENTRY}api_key = "{CANARY}"\napi_key_env = "X"',
        ["5: api_key_env and api_key are both set: keep one of them"],
    ),
    "a wrong key": (
        f'{ENTRY}api_key = "{CANARY} {CANARY}"',
        ["4: api_key must be one value, without spaces inside it"],
    ),
    "a key for the file's path": (
        f'{ENTRY}api_key_file = "{CANARY}"',
        ["4: api_key_file must name a readable file: No such file or directory"],
    ),
    "a variable that is not set": (
        f'{ENTRY}api_key_env = "UNSET"',
        ["4: api_key_env names the variable UNSET, which is not set: set it"],
    ),
    "a variable with a wrong key": (
        f'{ENTRY}api_key_env = "WRONG"',
        [
            "4: api_key_env names the variable WRONG, "
            "which must be one value, without spaces inside it"
        ],
    ),
    "a key for the variable's name": (
        f'{ENTRY}api_key_env = "{CANARY}"',
        ["4: api_key_env must be the name of an environment variable, not the value itself"],
    ),
    **{
        f"models = {models}": (f"{ENTRY}models = {models}", [MODELS])
        for models in ("3", "[]", "{}", '["a", 1]', '[""]', '{a = ""}', "{a = 1}", '"a"')
    },
    **{
        f"models = {{{name} = {there}}}": (
            f'{ENTRY}models = {{"{name}" = "{there}"}}',
            [f"4: models may have one * in a name, and only then there: '{name}'"],
        )
        for name, there in (("a**", "b"), ("a", "*"))
    },
    "values that are none": (
        f"{ENTRY}weight = 2026-11-30\nmax_concurrent = true\nidle_timeout = ''",
        [
            "4: weight must be text, a number or a list of names",
            "5: max_concurrent must be a whole number from 1 to 1000000, not 'yes'",
            "6: idle_timeout is empty: give it a value or remove it",
        ],
    ),
    "an order that is none": (
        f'order = "last"\nsticky = "maybe"\npinned = "c"\n{ENTRY}',
        [
            "1: order must be one of weighted, listed, not 'last'",
            "2: sticky must be yes or no, not 'maybe'",
            "3: pinned must be the name of an upstream",
        ],
    ),
}


@pytest.mark.parametrize("which", FAULTS)
def test_fault_of_the_file_is_told_with_its_line(tmp_path: Path, which: str) -> None:
    text, expected = FAULTS[which]
    assert faults(tmp_path, text, WRONG=f"{CANARY} {CANARY}") == expected


@pytest.mark.parametrize("weight", ["0", "-1", "inf", "nan", "1e300"])
def test_weight_that_is_none_is_refused(tmp_path: Path, weight: str) -> None:
    (fault,) = faults(tmp_path, f"{ENTRY}weight = {weight}")
    assert fault.startswith("4: weight must be")


def test_fault_of_a_kind_of_a_plugin_is_told_with_its_line(tmp_path: Path) -> None:
    def text(value: str) -> str:
        raise ValueError(f"must be a region, not {value!r}")

    settings = read(tmp_path, f'{ENTRY}kind = "acme"\nregion = 5')
    entries = UpstreamEntries(settings[UPSTREAMS_FILE], settings)
    (entry,) = entries.of_kind("acme")
    assert isinstance(entry, UpstreamEntry)
    assert entry.required("region", text, "x") == "x"
    assert entry.required("zone", text, "y") == "y"
    entry.upstream()
    entries.check()
    assert [fault.partition("line ")[2] for fault in entries.faults] == [
        "5: region must be a region, not '5'",
        "1: zone is missing: upstreams of the kind acme need it",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"name = ", "must name a TOML file, but "),
        (b"\xff", "must name a TOML file, which is in UTF-8"),
        (b"#" * (1024 * 1024 + 1), "must name a file of at most 1 MB"),
    ],
)
def test_file_that_is_no_toml_is_refused(tmp_path: Path, text: bytes, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=f"UPSTREAMS_FILE {fault}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("path", "fault"), [("/nowhere", "No such file or directory"), ("/dev/zero", "Not a regular")]
)
def test_file_that_cannot_be_read_is_refused(tmp_path: Path, path: str, fault: str) -> None:
    (told,) = faults_of(sources(tmp_path, environment={"UPSTREAMS_FILE": path}))
    assert told.startswith(f"UPSTREAMS_FILE must name a readable file, not '{path}': {fault}")


@pytest.mark.parametrize(
    "name", ["UPSTREAM_BASE_URL", "UPSTREAM_API_KEY", "UPSTREAM_API_KEYS", "UPSTREAM_API_KEY_FILE"]
)
def test_file_and_a_setting_of_one_upstream_contradict(tmp_path: Path, name: str) -> None:
    (tmp_path / "key").write_text(CANARY)
    values = {"UPSTREAM_BASE_URL": "https://x.example", "UPSTREAM_API_KEY_FILE": tmp_path / "key"}
    settings = read(tmp_path, ENTRY, **{name: str(values.get(name, CANARY))})
    assert contradictions(settings) == (
        f"{name} and UPSTREAMS_FILE are both set: put it into the file, and unset {name}",
    )


def test_several_keys_are_an_upstream_each(tmp_path: Path) -> None:
    keys = f"{CANARY}-1 {CANARY}-2"
    environment = {"UPSTREAM_API_KEYS": keys, "UPSTREAM_AUTH_SCHEME": "bearer"}
    settings = sources(tmp_path, environment=environment).read(CORE_SETTINGS)
    found, _ = upstreams(settings)
    told: list[Any] = [
        (name, each.api_key and each.api_key.reveal().decode(), each.key_source, each.auth_scheme)
        for name, each in found.items()
    ]
    assert told == [
        (f"default-{n}", f"{CANARY}-{n}", f"key {n} of UPSTREAM_API_KEYS", "bearer") for n in (1, 2)
    ]
    assert contradictions(settings) == ()
    assert CANARY not in f"{settings!r}{found!r}{found['default-1'].key_fault()}"
    both = sources(tmp_path, environment={**environment, "UPSTREAM_API_KEY": CANARY})
    assert contradictions(both.read(CORE_SETTINGS)) == (
        "UPSTREAM_API_KEY and UPSTREAM_API_KEYS are both set: unset one of them",
    )
