"""``python -m tornadoproxy``: the only place that reads ``sys.argv`` and ``os.environ``."""

from __future__ import annotations

import os
import sys

from tornadoproxy import cli


def main() -> int:
    """Run the command line, and return the exit status."""
    return cli.main(sys.argv[1:], os.environ)


if __name__ == "__main__":
    sys.exit(main())
