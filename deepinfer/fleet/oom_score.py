"""Whom the kernel ends first when memory runs out: an engine, before the agent that brings it back."""

from __future__ import annotations

import logging
import os
from pathlib import Path

ENGINE = 200
_AGENT = -900

log = logging.getLogger(__name__)


def spare_this_process() -> None:
    """Needs a privilege; without it nothing changes."""
    _write(os.getpid(), _AGENT)


def offer(pid: int) -> None:
    """An engine's first process; what it starts later inherits this."""
    _write(pid, ENGINE)


def _write(pid: int, score: int) -> None:
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))
    except OSError as error:
        log.debug("the OOM score of process %d stays as it is: %s", pid, error)
