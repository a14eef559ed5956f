"""``UPSTREAMS_FILE``: several upstreams in TOML, one table ``[[upstream]]`` each.

A kind of upstream reads its own entries, so that a plugin can bring kinds::

    for entry in entries.of_kind("acme"):
        region = entry.required("region", parsers.text)
        yield entry.upstream(base_url=BaseURL("https", f"{region}.acme.example", 443), wire=Acme())

Every fault of the file becomes one line that names the file's line; no value is repeated that may
be a secret.
"""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from tornadoproxy.config import parsers
from tornadoproxy.config.sources import nearest
from tornadoproxy.config.upstreams import Upstream, UpstreamsOrder
from tornadoproxy.protocol.wire import ANTHROPIC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tornadoproxy.config.settings import Settings
    from tornadoproxy.config.toml_file import TomlFile
    from tornadoproxy.config.urls import BaseURL
    from tornadoproxy.protocol.wire import Wire
    from tornadoproxy.secret import Secret

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_weight = parsers.number(minimum=0.001, maximum=1_000_000)


class UpstreamEntries:
    """The entries of the file, which is empty if ``UPSTREAMS_FILE`` is not set.

    :ivar faults: lines, in the order found.
    """

    def __init__(self, file: TomlFile | None, settings: Settings) -> None:
        self.faults: list[str] = []
        self._settings = settings
        self._kinds: list[str] = []
        self._file = file
        self._reader = _Table(self, {} if file is None else file.document, None)
        tables = self._reader.table.get("upstream", [])
        if file is not None and (not isinstance(tables, list) or not tables):
            self.fault(1, "there is no [[upstream]]: add one for each way to reach Claude")
            tables = []
        self._entries = [UpstreamEntry(self, table, place) for place, table in enumerate(tables)]

    def of_kind(self, kind: str) -> Iterator[UpstreamEntry]:
        """Yield the entries whose ``kind`` this is, and take note that it is a known one."""
        self._kinds.append(kind)
        for entry in self._entries:
            if entry.kind == kind:
                entry.known = True
                yield entry

    def check(self) -> None:
        """Add a fault for each entry of an unknown kind, and for each key that nobody has read."""
        names = [entry.name for entry in self._entries]
        for entry in self._entries:
            if not entry.known:
                hint = nearest(entry.kind, self._kinds)
                known = "" if hint else f"; known kinds are {', '.join(sorted(self._kinds))}"
                entry.fault("kind", f"is unknown, {entry.kind!r}{hint}{known}")
            else:
                entry.check_keys()
        for place, name in enumerate(names):
            if name in names[:place]:
                self._entries[place].fault("name", "is another upstream's too: rename one")

    def order(self) -> UpstreamsOrder:
        """Return how an upstream is chosen."""
        reader = self._reader
        reader.read_names.add("upstream")
        order = reader.read("order", parsers.choice("weighted", "listed"), "weighted")
        sticky = reader.read("sticky", parsers.boolean, default=True)
        pinned = reader.read("pinned", parsers.text)
        names = [entry.name for entry in self._entries]
        if pinned is not None and pinned not in names:
            reader.fault("pinned", f"must be the name of an upstream{nearest(pinned, names)}")
        reader.check_keys()
        return UpstreamsOrder(listed=order == "listed", sticky=sticky, pinned=pinned)

    def place(self, name: str) -> int:
        """Return the place of the entry `name`, for sorting; others come last."""
        names = [entry.name for entry in self._entries]
        return names.index(name) if name in names else len(names)

    def environment(self, name: str) -> str | None:
        """Return the text of an environment variable, which may be set in ``.env``."""
        return self._settings.environment(name)

    def fault(self, line: int, text: str) -> None:
        """Add a fault of the file."""
        assert self._file is not None
        self.faults.append(f"{self._file.path}, line {line}: {text}")

    def line_of(self, key: str, place: int | None) -> int:
        """Return the line of `key` in the entry at `place`, or that of the entry's head.

        :param place: ``None`` for a key before all entries.
        """
        assert self._file is not None
        lines = self._file.text.splitlines()
        heads = [
            at for at, line in enumerate(lines) if re.match(r"\s*\[\[\s*upstream\s*\]\]", line)
        ]
        if place is None:
            first, last = 0, heads[0] if heads else len(lines)
        elif place < len(heads):
            first, last = heads[place], (*heads, len(lines))[place + 1]
        else:  # an inline table
            return 1
        spelled = re.compile(rf"""\s*(\[\s*upstream\s*\.\s*)?["']?{re.escape(key)}["']?\s*[=.\]]""")
        return 1 + next((at for at in range(first, last) if spelled.match(lines[at])), first)


class _Table:
    """A table of the file, and which of its keys have been read."""

    def __init__(
        self, entries: UpstreamEntries, table: Mapping[str, Any], place: int | None
    ) -> None:
        self.table = table
        self.read_names: set[str] = set()
        self._entries = entries
        self._place = place

    def read(
        self, key: str, parse: Callable[[str], T], default: Any = None
    ) -> Any:  # Any: T | default's
        """Return the parsed value of `key`, or `default`; a fault counts as absent.

        :param parse: one of `tornadoproxy.config.parsers`; numbers and booleans get there as text,
            a list of names as words.
        """
        self.read_names.add(key)
        if key not in self.table:
            return default
        try:
            return parse(_text_of(self.table[key]))
        except ValueError as error:
            self.fault(key, str(error))
            return default

    def fault(self, key: str, text: str) -> None:
        """Add a fault of `key`, whose name `text` follows."""
        self._entries.fault(self._entries.line_of(key, self._place), f"{key} {text}")

    def check_keys(self) -> None:
        """Add a fault for each key that has not been read."""
        for key in [key for key in self.table if key not in self.read_names]:
            self.fault(key, f"is unknown{nearest(key, self.read_names)}")


class UpstreamEntry(_Table):
    """One ``[[upstream]]``; what is wrong with it becomes a fault of the file.

    :ivar name: of the upstream.
    :ivar kind: ``anthropic`` where none is given.
    """

    def __init__(self, entries: UpstreamEntries, table: object, place: int) -> None:
        super().__init__(entries, table if isinstance(table, dict) else {}, place)
        self.known = False
        self.name = self.read("name", _name, f"upstream-{place + 1}")
        if "name" not in self.table:
            self.fault("name", "is missing: every upstream has one")
        self.kind = self.read("kind", parsers.text, "anthropic")

    def required(self, key: str, parse: Callable[[str], T], default: T) -> T:
        """Return the parsed value of `key`; where it is missing, that is a fault."""
        if key not in self.table:
            self.fault(key, f"is missing: upstreams of the kind {self.kind} need it")
        value: T = self.read(key, parse, default)
        return value

    def secret(self, key: str) -> tuple[Secret | None, str | None]:
        """Return a credential, and which key of the entry names it.

        It is given by `key`, by ``KEY_file``, which names a file that holds it, or by ``KEY_env``,
        which names an environment variable that does; more than one of them is a fault.
        """
        keys = {key: parsers.secret, f"{key}_file": parsers.secret_file, f"{key}_env": _variable}
        given = [each for each in keys if each in self.table]
        self.read_names.update(keys)
        if len(given) > 1:
            self.fault(given[1], f"and {given[0]} are both set: keep one of them")
        if not given:
            return None, None
        source = given[0]
        value = self.read(source, keys[source])
        if source == f"{key}_env" and value is not None:
            text, variable = self._entries.environment(value), value
            value = None
            if not text:
                self.fault(source, f"names the variable {variable}, which is not set: set it")
            else:
                try:
                    value = parsers.secret(text)
                except ValueError as error:
                    self.fault(source, f"names the variable {variable}, which {error}")
        return value, f"{source} of the upstream {self.name!r}"

    def upstream(
        self, *, wire: Wire = ANTHROPIC, base_url: BaseURL | None = None, **more: Any
    ) -> Upstream:
        """Return the upstream, with the keys that all kinds have.

        These are ``base_url``, ``weight``, ``models``, ``max_concurrent``, ``connect_timeout``,
        ``first_byte_timeout``, ``idle_timeout``, ``ca_file`` and ``https_proxy``; and, unless
        `more` has an ``api_key``, that key (see `secret`) and ``auth_scheme``.

        :param base_url: where the entry has none; without either it is a fault.
        :param more: further fields of `Upstream`.
        """
        if "api_key" not in more:
            more["api_key"], more["key_source"] = self.secret("api_key")
            more["auth_scheme"] = self.read(
                "auth_scheme", parsers.choice("x-api-key", "bearer"), "x-api-key"
            )
        nowhere = parsers.BaseURL("https", "upstream.invalid", 443)
        if base_url is None:
            base_url = self.required("base_url", parsers.base_url, nowhere)
        else:
            base_url = self.read("base_url", parsers.base_url, base_url)
        timeout = parsers.seconds(minimum=0.001)
        return Upstream(
            name=self.name,
            kind=self.kind,
            base_url=base_url,
            wire=wire,
            weight=self.read("weight", _weight, 1.0),
            models=self._models(),
            max_concurrent=self.read("max_concurrent", parsers.integer(1, 1_000_000)),
            connect_timeout=self.read("connect_timeout", timeout),
            first_byte_timeout=self.read("first_byte_timeout", timeout),
            idle_timeout=self.read("idle_timeout", timeout),
            ca_file=self.read("ca_file", parsers.certificates_file),
            egress_proxy=self.read("https_proxy", parsers.egress_proxy),
            **more,
        )

    def _models(self) -> Mapping[str, str]:
        """Return ``models``: a table, or a list of names that are the same there."""
        self.read_names.add("models")
        if "models" not in self.table:
            return MappingProxyType({})
        given = self.table["models"]
        if isinstance(given, list) and all(isinstance(name, str) and name for name in given):
            given = {name: name for name in given}
        if not (isinstance(given, dict) and given) or not all(
            isinstance(name, str) and name and isinstance(there, str) and there
            for name, there in given.items()
        ):
            self.fault("models", 'must be names, ["a", "b"], or a table, {"a" = "its name there"}')
            return MappingProxyType({})
        for name, there in given.items():
            if name.count("*") > 1 or there.count("*") > name.count("*"):
                self.fault("models", f"may have one * in a name, and only then there: {name!r}")
        return MappingProxyType(given)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be up to 64 letters, digits, dots, hyphens and underscores")
    return value


def _variable(value: str) -> str:
    # not shown: it may be the credential itself, by mistake
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("must be the name of an environment variable, not the value itself")
    return value


def _text_of(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:.15g}" if isinstance(value, float) else str(value)
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("is empty: give it a value or remove it")
        return value.strip()
    if isinstance(value, list) and all(isinstance(each, str) and each.split() for each in value):
        return " ".join(value)
    raise ValueError("must be text, a number or a list of names")
