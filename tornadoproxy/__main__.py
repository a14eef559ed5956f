"""``python -m tornadoproxy``: the only place that reads ``sys.argv`` and ``os.environ``."""

from __future__ import annotations

import gc
import os
import sys


def main() -> int:
    """Run the command line and return the exit status."""
    # nothing that is loaded now is garbage; to look for it takes 7 % of the start (254 ms of CPU
    # in place of 236). The server enables it again once it has started.
    gc.disable()
    from tornadoproxy.cli import main as cli

    _open_standard_streams()
    return cli.main(sys.argv[1:], os.environ)


def _open_standard_streams() -> None:
    """Open the standard streams that the process was started without.

    Otherwise a socket would get the file descriptor of one of them, and log lines would be written
    to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  # stays open


if __name__ == "__main__":
    sys.exit(main())
