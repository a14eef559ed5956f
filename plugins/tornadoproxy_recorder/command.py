"""The command ``python -m tornadoproxy records``: what was recorded, and sending it again."""

from __future__ import annotations

import argparse
import base64
import json
import re
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

from tornadoproxy import HOST, PORT, ConfigurationError, tables
from tornadoproxy_recorder import files
from tornadoproxy_recorder.redaction import REDACTED
from tornadoproxy_recorder.streams import assembled

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tornadoproxy import Setting, Settings
    from tornadoproxy_recorder.files import Document

_COLUMNS = {
    "time": "time",
    "request_id": "id",
    "principal": "principal",
    "model": "model",
    "status": "status",
    "outcome": "outcome",
    "bytes_in": "bytes in",
    "bytes_out": "bytes out",
    "seconds": "seconds",
}
_LARGEST_ARGUMENT = 100_000  # characters; Linux has a limit of 128 KB
_NOT_SENT_AGAIN = frozenset(
    {"accept-encoding", "connection", "content-length", "expect", "host", "transfer-encoding"}
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands to the parser of ``records``."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="list what was recorded, the newest first")
    listing.add_argument("--principal", help="only requests of this principal")
    listing.add_argument("--model", help="only requests for this model")
    listing.add_argument("--status", type=tables.count, help="only responses with this status")
    listing.add_argument(
        "--since",
        type=tables.since,
        metavar="AGE|DATE",
        help="first day or moment: 7d, 24h, 2026-11-30 (default: the first request's)",
    )
    tables.add_limit(listing, 50, "number of requests")
    tables.add_format(listing)
    listing.set_defaults(act=_list)

    show = commands.add_parser("show", help="show a request and its response")
    show.add_argument(
        "--part", choices=("request", "response"), help="only that body, as it was recorded"
    )
    show.set_defaults(act=_show)
    curl = commands.add_parser("curl", help="print a request as a curl command, without credential")
    curl.set_defaults(act=_curl)
    replay = commands.add_parser(
        "replay", help="send a request again, with the first token of AUTH_TOKEN"
    )
    replay.set_defaults(act=_replay)
    for command in (curl, replay):
        command.add_argument(
            "--to", metavar="URL", help="the proxy's URL (default: by HOST and PORT)"
        )
    for command in (show, curl, replay):
        command.add_argument("id", metavar="ID", help="the request id, or how it begins; or last")


def run(arguments: argparse.Namespace, settings: Settings, directory: Setting[Path | None]) -> int:
    """Run a sub-command.

    :param directory: the setting of the directory.
    :raises ConfigurationError: the directory or the exchange cannot be read.
    """
    where = settings[directory]
    if where is None:
        raise ConfigurationError("RECORD_DIR is not set: set it to the directory of the records.")
    try:
        status: int = arguments.act(arguments, settings, where)
    except OSError as error:
        raise ConfigurationError(
            f"{error.filename or where} cannot be read: {error.strerror}; check RECORD_DIR."
        ) from None
    return status


def _list(arguments: argparse.Namespace, settings: Settings, directory: Path) -> int:
    rows = []
    for record in _records(arguments, directory):
        rows.append(
            (
                tables.timestamp(record["time"]),
                record["request_id"],
                record["principal"],
                record["model"] or record["requested_model"],
                record["status"],
                record["outcome"],
                record["bytes_in"],
                record["bytes_out"],
                f"{record['duration']:.1f}",
            )
        )
        if len(rows) == arguments.limit:
            break
    tables.write(_COLUMNS, rows, arguments.format)
    return 0


def _records(arguments: argparse.Namespace, directory: Path) -> Iterator[Document]:
    """Yield the records that are asked for."""
    since = arguments.since and tables.moment(arguments.since, time.time())
    for path in files.newest_first(directory):
        try:
            record: Document = files.read(path)["record"]
        except FileNotFoundError:
            continue  # it has expired
        except ValueError:
            sys.stderr.write(f"{path} is left out: it is no record\n")
            continue
        if since is not None and record["time"] < since:
            return
        wanted = (
            (arguments.principal, (record["principal"],)),
            (arguments.model, (record["model"], record["requested_model"])),
            (arguments.status, (record["status"],)),
        )
        if all(value is None or value in found for value, found in wanted):
            yield record


def _found(arguments: argparse.Namespace, directory: Path) -> Document:
    """Return the exchange with the id."""
    if arguments.id == "last":
        paths = [next(files.newest_first(directory), None)]
    else:
        paths = [*files.find(directory, arguments.id)]
    if not paths or paths[0] is None:
        raise ConfigurationError(f"No record's id begins with {arguments.id!r}: see records list.")
    if len(paths) > 1:
        raise ConfigurationError(
            f"{len(paths)} ids begin with {arguments.id!r}: give more of the one that you mean."
        )
    try:
        return files.read(paths[0])
    except ValueError as error:
        raise ConfigurationError(f"{paths[0]} cannot be read: {error}.") from None


# -- show


def _show(arguments: argparse.Namespace, settings: Settings, directory: Path) -> int:
    exchange = _found(arguments, directory)
    if arguments.part is not None:
        part = exchange[arguments.part]
        sys.stdout.buffer.write(b"" if part is None else _bytes_of(part["body"]))
        sys.stdout.buffer.flush()
        return 0
    record, request, response = (exchange[name] for name in ("record", "request", "response"))
    lines = [
        f"{tables.timestamp(record['time'])} {record['request_id']} of {record['principal']}, "
        f"{record['outcome']} after {record['duration']:.1f} s",
        *(f"{name}: {record[name]}" for name in ("error", "upstream") if record[name]),
        "",
        f"{request['method']} {request['path']}",
        *_part(request),
    ]
    if response is not None:
        lines += ["", f"HTTP {response['status']}", *_part(response)]
    sys.stdout.writelines(f"{_CONTROL.sub(_escaped, line)}\n" for line in lines)
    return 0


def _part(part: Document) -> Iterator[str]:
    """Yield the lines of headers and body."""
    yield from (f"{name}: {value}" for name, value in part["headers"])
    yield ""
    body = part["body"]
    if "text" in body:
        yield _readable(body["text"], part["headers"])
    elif "base64" in body:
        yield "[binary]"
    if body.get("omitted"):
        yield f"[not recorded: {body['omitted']}]"
    if body.get("truncated"):
        yield f"[truncated: {body['size']} bytes have passed]"


def _readable(text: str, headers: list[list[str]]) -> str:
    kind = next((value for name, value in headers if name.lower() == "content-type"), "")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        if not kind.startswith("text/event-stream"):
            return text
        document = assembled(text)
    return json.dumps(document, indent=2, ensure_ascii=False)


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


# -- curl and replay


def _bytes_of(body: Document) -> bytes:
    if "base64" in body:
        return base64.b64decode(body["base64"])
    return str(body.get("text", "")).encode()


def _repeatable(exchange: Document) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers and the body of the request, as far as they can be sent again.

    :raises ConfigurationError: not all of the body was recorded.
    """
    request = exchange["request"]
    body = request["body"]
    if body.get("truncated") or body.get("omitted"):
        raise ConfigurationError(
            "This request cannot be sent again: not all of its body was recorded. Raise "
            "RECORD_MAX_BODY."
        )
    left_out = {*_NOT_SENT_AGAIN, *(("content-encoding",) if body.get("decoded") else ())}
    headers = [(n, v) for n, v in request["headers"] if n.lower() not in left_out]
    if REDACTED in body.get("text", "") or any(REDACTED in value for _, value in headers):
        sys.stderr.write(
            f"parts of this request were redacted: {REDACTED} is sent in their place\n"
        )
    return headers, _bytes_of(body)


def _credential(exchange: Document, value: str) -> tuple[str, str]:
    if exchange["record"]["dialect"] == "openai":
        return "Authorization", f"Bearer {value}"
    return "x-api-key", value


def _url(arguments: argparse.Namespace, settings: Settings) -> str:
    """Return the URL of the proxy, without a slash at its end."""
    if arguments.to is not None:
        return str(arguments.to).rstrip("/")
    host = settings[HOST]
    if host.startswith("unix:"):
        raise ConfigurationError("HOST is a socket's path: say with --to where the proxy is.")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not bound here
    scheme = "https" if settings.is_set("TLS_CERT") else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{settings[PORT]}"


def _curl(arguments: argparse.Namespace, settings: Settings, directory: Path) -> int:
    exchange = _found(arguments, directory)
    headers, body = _repeatable(exchange)
    request = exchange["request"]
    quoted = shlex.quote
    name, value = _credential(exchange, "$AUTH_TOKEN")
    words = ["curl", "-sS", "-N", "-X", quoted(request["method"])]
    if request["method"] == "HEAD":
        words[-2:] = ["--head"]
    words += [quoted(_url(arguments, settings) + request["path"]), f'-H "{name}: {value}"']
    words += [f"-H {quoted(f'{name}: {value}')}" for name, value in headers]
    text = request["body"].get("text", "")
    if body and len(body) <= _LARGEST_ARGUMENT and "text" in request["body"] and "\0" not in text:
        words.append(f"--data-raw {quoted(text)}")
    elif body:
        words.append("--data-binary @-")
        id_ = quoted(exchange["record"]["request_id"])
        sys.stdout.write(f"python -m tornadoproxy records show {id_} --part request |\n  ")
    sys.stdout.write(f"{' '.join(words)}\n")
    return 0


def _replay(arguments: argparse.Namespace, settings: Settings, directory: Path) -> int:
    """Send a request again; 0 if its response is no error, else 1."""
    import http.client
    from urllib.parse import urlsplit

    exchange = _found(arguments, directory)
    headers, body = _repeatable(exchange)
    tokens = (settings.environment("AUTH_TOKEN") or "").split()
    if not tokens:
        raise ConfigurationError("AUTH_TOKEN is not set: set it to a credential of the proxy.")
    url = urlsplit(_url(arguments, settings))
    kinds: dict[str, Any] = {  # Any: their signatures differ
        "http": http.client.HTTPConnection,
        "https": http.client.HTTPSConnection,
    }
    if url.scheme not in kinds or not url.hostname:
        raise ConfigurationError(f"--to must be an http or https URL, not {arguments.to!r}.")
    request = exchange["request"]
    connection = kinds[url.scheme](url.hostname, url.port)
    try:
        connection.putrequest(
            request["method"], url.path + request["path"], skip_accept_encoding=True
        )
        for name, value in (*headers, _credential(exchange, tokens[0])):
            connection.putheader(name, value)
        if body or request["method"] in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        sys.stderr.write(f"HTTP {response.status}\n")
        while piece := response.read1(65536):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except (OSError, http.client.HTTPException) as error:
        raise ConfigurationError(
            f"The proxy at {url.scheme}://{url.netloc} did not respond: {error or type(error)}. "
            "Is it running? Say with --to where."
        ) from None
    finally:
        connection.close()
    return int(response.status >= 400)
