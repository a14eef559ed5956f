"""Both TypeScript SDKs against the real proxy.

They run where node is, and where ``npm install --prefix tests/system/typescript`` has been run, as
``.ci/run`` does.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tornadoproxy.testing import TEST_TOKEN

if TYPE_CHECKING:
    from tornadoproxy.testing import Proxy

HERE = Path(__file__).parent / "typescript"

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (HERE / "node_modules").is_dir(),
    reason="needs node, and npm install --prefix tests/system/typescript",
)


async def test_typescript_sdks_work_through_the_proxy(proxy: Proxy) -> None:
    ran = await asyncio.to_thread(
        subprocess.run,
        ["node", "clients.mjs", proxy.url, TEST_TOKEN],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)  # Any: the script's own report
    for said in ("message", "messageStream", "completion", "chunks"):
        assert told[said].endswith("Hello"), said
    assert told["tokens"] > 0
    assert told["usage"] > 0
    assert told["bearer"] == told["defaultHeaders"] == "message"
    assert told["call"] == ["get_weather", {"city": "Bern"}]
    assert told["answered"] == "stop"
    assert "claude-sonnet-5-5" in told["models"]
    assert told["anthropicRefusal"] == ["AuthenticationError", 401, True]
    assert told["openaiRefusal"] == ["BadRequestError", 400, "n", True]
