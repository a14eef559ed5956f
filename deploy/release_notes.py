"""Writes dist/RELEASE.md: the version, its changes, and each file with its SHA-256.

``tox run -e release`` runs it last, in the directory of the repository.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path


def main() -> int:
    dist = Path("dist")
    (wheel,) = dist.glob("*.whl")
    version = wheel.name.split("-")[1]
    heading = re.compile(rf"^## {re.escape(version)}\b.*$", re.MULTILINE)
    changelog = Path("CHANGELOG.md").read_text(encoding="utf-8")
    found = heading.search(changelog)
    if found is None:
        print(f"CHANGELOG.md: no section '## {version}'; add one", file=sys.stderr)
        return 1
    changes = re.split(r"^## ", changelog[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]
    files = sorted(path for path in dist.iterdir() if path.name != "RELEASE.md")
    rows = [f"| {path.name} | {path.stat().st_size:,} | `{_sha256(path)}` |" for path in files]
    table = "\n".join(["| File | Bytes | SHA-256 |", "|---|---|---|", *rows])
    text = f"# tornadoproxy {version}\n\n{table}\n\n{changes.strip()}\n"
    (dist / "RELEASE.md").write_text(text, encoding="utf-8")
    print(f"dist/RELEASE.md describes {len(files)} files of {version}")
    return 0


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    raise SystemExit(main())
