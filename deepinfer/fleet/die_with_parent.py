"""Become another program that the kernel signals when the parent dies, even by kill -9. Linux; elsewhere it only execs.

    python -m deepinfer.fleet.die_with_parent [--parent PID] SIGNAME PROGRAM ARGS...

No process stays in between: exec keeps the process id and the death signal. Two limits of the kernel's: the signal
comes when the *thread* that started this process ends, and a set-user-id PROGRAM clears it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def dying_with_me(program: Sequence[str], signal_name: str = "SIGTERM") -> list[str]:
    """The command line that runs `program` until this process ends. Start it from a thread that lives as long."""
    # Run as a file without site-packages, it starts in a few milliseconds and imports nothing of deepinfer.
    return [sys.executable, "-I", "-S", __file__, "--parent", str(os.getpid()), signal_name, *program]


def main(arguments: Sequence[str]) -> None:
    parent = os.getppid()
    if arguments[:1] == ["--parent"]:
        parent, arguments = int(arguments[1]), arguments[2:]
    if len(arguments) < 2:
        sys.exit("usage: python -m deepinfer.fleet.die_with_parent [--parent PID] SIGNAME PROGRAM ARGS...")
    if sys.platform == "linux":
        _ask_for_signal(signal.Signals[arguments[0]])
    if os.getppid() != parent:  # it died before the kernel knew of our wish
        sys.exit(1)
    os.execvp(arguments[1], list(arguments[1:]))  # noqa: S606  # no shell: that is the point


def _ask_for_signal(wanted: signal.Signals) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(wanted), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


if __name__ == "__main__":
    main(sys.argv[1:])
