"""The proxies that are measured, and how each is set up: as one would run it, with its log on."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.processes import pinned
from bench.programs import BenchError
from bench.prompts import MODEL, TOKEN, UPSTREAM_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Peer:
    """One proxy, or what is measured as if it were.

    :param name: in the table.
    :param command: writes what it needs into the folder that it gets, for a port to listen on and
        the upstream's port, and returns the command that starts it. A file ``token`` there holds
        what clients present to it, if that is a token of its own.
    :param environment: for that command, and nothing else but PATH.
    :param health: the path that returns 200 as soon as it serves.
    :param messages: its path of Anthropic's messages.
    :param chat: its path of OpenAI's chat completions, if it has that.
    :param responses: its path of OpenAI's Responses API, if it is measured.
    :param relays: whether it has an upstream.
    :param direct: whether it is no proxy, but the upstream itself.
    :param share: the part of the requests that it gets, so that a slow one does not take an hour.
    :param most_streams: more are not tried.
    :param version: says which version of it this is.
    """

    name: str
    command: Callable[[int, int, Path], list[str]]
    version: Callable[[], str]
    environment: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"
    messages: str = "/v1/messages"
    chat: str | None = None
    responses: str | None = None
    relays: bool = True
    direct: bool = False
    share: float = 1.0
    most_streams: int = 5_000


DIRECT = Peer("direct", lambda port, upstream, folder: [], lambda: "", relays=False, direct=True)


@dataclass(frozen=True)
class Running:
    """A peer that serves.

    :param started: the seconds from its start to its first response.
    :param token: what it wants clients to present.
    """

    peer: Peer
    pid: int
    port: int
    started: float
    token: str = TOKEN


def proxy(
    name: str,
    python: str,
    checkout: Path,
    *,
    uvloop: bool,
    first: str = "",
    flags: Callable[[list[str], int, Path], list[str]] = lambda start, upstream, folder: [],
) -> Peer:
    """The proxy in `checkout`, run by `python`, with the plugins that come with it.

    :param first: Python statements that are run before it.
    :param flags: more of them, given what starts it, the upstream's port and a folder; may run
        commands before.
    """
    folders = [str(checkout), str(checkout / "plugins")]
    # where uvloop is installed it is used, unless it is hidden
    hide = "" if uvloop else "sys.modules['uvloop'] = None; "
    start = [
        python,
        "-c",
        f"import sys; {_AS_INSTALLED.format(folders=folders)}{hide}{first}"
        "from tornadoproxy.__main__ import main; main()",
    ]

    def command(port: int, upstream: int, folder: Path) -> list[str]:
        return [
            *start,
            *("--port", str(port)),
            *("--upstream-base-url", f"http://127.0.0.1:{upstream}"),
            *flags(start, upstream, folder),
        ]

    environment = {"AUTH_TOKEN": TOKEN, "UPSTREAM_API_KEY": UPSTREAM_KEY}
    return Peer(
        name,
        command,
        lambda: _versions(python, "tornadoproxy", "tornado", *(["uvloop"] if uvloop else [])),
        environment,
        chat="/openai/v1/chat/completions",
        responses="/openai/v1/responses",
    )


# The checkout stands where an installed package does, behind the standard library. In front, as
# PYTHONPATH puts it, each module of that would be looked for in it first.
_AS_INSTALLED = (
    "at = [each.endswith('site-packages') for each in sys.path].index(True); "
    "sys.path[at:at] = {folders}; "
)


def hello(python: str) -> Peer:
    """A bare Tornado handler, which responds by itself."""

    def command(port: int, upstream: int, folder: Path) -> list[str]:
        return [python, str(Path(__file__).with_name("hello.py")), str(port)]

    return Peer("hello", command, lambda: _versions(python, "tornado"), relays=False)


def nginx(program: str) -> Peer:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        configuration = folder / "nginx.conf"
        configuration.write_text(
            NGINX.format(
                port=port, upstream=upstream, folder=folder, token=TOKEN, upstream_key=UPSTREAM_KEY
            )
        )
        return [program, "-c", str(configuration), "-e", str(folder / "error.log")]

    return Peer("nginx", command, lambda: _first_line(program, "-v"))


def haproxy(program: str) -> Peer:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        configuration = folder / "haproxy.cfg"
        configuration.write_text(
            HAPROXY.format(port=port, upstream=upstream, token=TOKEN, upstream_key=UPSTREAM_KEY)
        )
        return [program, "-db", "-f", str(configuration)]

    return Peer("haproxy", command, lambda: _first_line(program, "-v"))


def litellm(venv: Path) -> Peer:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        configuration = folder / "litellm.yaml"
        configuration.write_text(
            LITELLM.format(model=MODEL, upstream=upstream, token=TOKEN, upstream_key=UPSTREAM_KEY)
        )
        program = str(venv / "bin" / "litellm")
        return [
            program,
            *("--config", str(configuration)),
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
            *("--telemetry", "False"),
        ]

    environment = {
        # the price list that it ships, instead of one from the network
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        # it opens 500 to one host unless told, and lets other requests wait
        "AIOHTTP_CONNECTOR_LIMIT": "2000",
        "AIOHTTP_CONNECTOR_LIMIT_PER_HOST": "2000",
    }
    return Peer(
        "litellm",
        command,
        lambda: _versions(str(venv / "bin" / "python"), "litellm"),
        environment,
        health="/health/liveliness",
        chat="/v1/chat/completions",
        share=1 / 50,
        most_streams=1_000,
    )


def ccproxy(venv: Path) -> Peer:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        # what it takes for the login of a Claude subscription
        login = {
            "accessToken": UPSTREAM_KEY,
            "refreshToken": "none",
            "expiresAt": 4_102_444_800_000,
            "scopes": ["user:inference"],
        }
        file = folder / ".claude" / ".credentials.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"claudeAiOauth": login}))
        return [
            "/usr/bin/env",
            f"PLUGINS__CLAUDE_API__BASE_URL=http://127.0.0.1:{upstream}",
            str(venv / "bin" / "ccproxy"),
            "serve",
            *("--host", "127.0.0.1"),
            *("--port", str(port)),
        ]

    environment = {
        "ENABLED_PLUGINS": '["claude_api","oauth_claude","access_log"]',
        # or it looks for their command lines, for eleven seconds
        "DISABLED_PLUGINS": '["codex","oauth_codex","copilot"]',
        "SCHEDULER__ENABLED": "false",
        "SECURITY__AUTH_TOKEN": TOKEN,
    }
    return Peer(
        "ccproxy-api",
        command,
        lambda: _versions(str(venv / "bin" / "python"), "ccproxy-api"),
        environment,
        health="/health/live",
        messages="/claude/v1/messages",
        chat="/claude/v1/chat/completions",
        share=1 / 50,
        most_streams=1_000,
    )


def found(python: str, checkout: Path, venvs: Path) -> tuple[list[Peer], list[str]]:
    """The peers that this machine has, and for each that it lacks how to get it."""
    peers = [
        proxy("tornadoproxy", python, checkout, uvloop=False),
        hello(python),
    ]
    absent = []
    if _has(python, "uvloop"):
        peers.insert(1, proxy("tornadoproxy uvloop", python, checkout, uvloop=True))
    else:
        absent.append(f"tornadoproxy uvloop: {python} -m pip install uvloop")
    for name, peer in (("nginx", nginx), ("haproxy", haproxy)):
        program = shutil.which(name, path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if program:
            peers.append(peer(program))
        else:
            absent.append(f"{name}: apt-get install {name}")
    for name, package, in_venv in (
        ("litellm", "litellm[proxy]", litellm),
        ("ccproxy", "ccproxy-api", ccproxy),
    ):
        venv = venvs / name
        if (venv / "bin" / name).exists():
            peers.append(in_venv(venv))
        else:
            absent.append(
                f"{package}: python3 -m venv {venv} && {venv}/bin/pip install '{package}'"
            )
    return peers, absent


@contextmanager
def running(peer: Peer, upstream: int, folder: Path, cpus: set[int]) -> Iterator[Running]:
    """`peer` serves, in front of the upstream at port `upstream`, on `cpus` only.

    :param folder: where its configuration and its logs go.
    :raises BenchError: it ends by itself, or does not serve within two minutes.
    """
    port = _free_port()
    folder = Path(tempfile.mkdtemp(prefix=f"{peer.name.replace(' ', '-')}-", dir=folder))
    folder.chmod(0o755)  # nginx gives up its rights
    command = peer.command(port, upstream, folder)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **peer.environment}
    with (folder / "output.log").open("wb") as output, pinned(cpus):
        began = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _first_response(peer, process, port, began + 120, folder)
        started = time.perf_counter() - began
        own = folder / "token"
        token = own.read_text() if own.exists() else TOKEN
        yield Running(peer, process.pid, port, started, token)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_response(
    peer: Peer, process: subprocess.Popen[bytes], port: int, deadline: float, folder: Path
) -> None:
    request = f"GET {peer.health} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            break
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request.encode())
                if b" 200 " in connection.recv(4096)[:14]:
                    return
        except OSError:
            time.sleep(0.0005)
    output = (folder / "output.log").read_text(errors="replace")
    raise BenchError(f"{peer.name} does not serve:\n{output[-2000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _has(python: str, module: str) -> bool:
    done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return done.returncode == 0


def _versions(python: str, *distributions: str) -> str:
    code = (
        "import sys; from importlib.metadata import version; "
        f"print(*(f'{{name}} {{version(name)}},' for name in {distributions!r}), "
        "'Python', sys.version.split()[0])"
    )
    return _first_line(python, "-c", code)


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).partition("\n")[0].strip()


NGINX = """\
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
worker_rlimit_nofile 16384;
events {{
    worker_connections 16384;
}}
http {{
    access_log {folder}/access.log;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    upstream api {{
        server 127.0.0.1:{upstream};
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout 1h;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location = /health {{
            return 200 "ok";
        }}
        location /v1/ {{
            if ($http_authorization != "Bearer {token}") {{
                return 401;
            }}
            proxy_pass http://api;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Authorization "";
            proxy_set_header X-Api-Key "{upstream_key}";
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 1h;
            client_max_body_size 0;
        }}
    }}
}}
"""

HAPROXY = """\
global
    log stdout format raw local0
    maxconn 8000
    nbthread 1
defaults
    mode http
    log global
    option httplog
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    http-reuse always
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    monitor-uri /health
    acl known req.hdr(authorization) -m str "Bearer {token}"
    http-request deny deny_status 401 unless known
    http-request del-header Authorization
    http-request set-header X-Api-Key {upstream_key}
    default_backend api
backend api
    server api 127.0.0.1:{upstream}
"""

LITELLM = """\
model_list:
  - model_name: {model}
    litellm_params:
      model: anthropic/{model}
      api_base: http://127.0.0.1:{upstream}
      api_key: {upstream_key}
general_settings:
  master_key: {token}
"""
