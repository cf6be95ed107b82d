"""`python -m umx_ext` is the command `umx-ext`, whose entry point `run` is too."""

from __future__ import annotations

import os
import signal
from typing import NoReturn


def run() -> NoReturn:
    """Do what the arguments say and exit."""
    # An interrupt may come before there is anything to tidy up, while modules are imported; `cli` takes over from here.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: (os.write(2, b"umx-ext: interrupted\n"), os._exit(130)))

    from umx_ext import cli

    cli.run()


if __name__ == "__main__":
    run()
