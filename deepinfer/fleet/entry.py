"""How both processes begin and end: plain lines on stderr, and an error of ours as one sentence."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import uvloop

from deepinfer.fleet.api_key import VARIABLE
from deepinfer.fleet.config import InvalidConfig
from deepinfer.fleet.errors import DeepinferError


def run_process(main: Callable[[], Coroutine[Any, Any, None]], name: str = "") -> int:
    """The process's exit status: 0 when `main` ended, 1 after an error that is told in one sentence, 2 if
    what it was told to do is wrong. `name` is told in each line, where several processes have one log."""
    _log_to_stderr(f"{name}: " if name else "")
    os.environ.pop(VARIABLE, None)  # the user's, for the command line: no engine that is started here inherits it
    exit_status = 0
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())
    except* DeepinferError as errors:
        for error in _single_errors(errors):
            exit_status = 2 if isinstance(error, InvalidConfig) else 1
            print(f"error: {error}", file=sys.stderr)
    return exit_status


def _log_to_stderr(who: str) -> None:
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(_PlainLines(f"%(asctime)s %(levelname)s {who}%(message)s"))
    logging.basicConfig(handlers=[lines], level=logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


class _PlainLines(logging.Formatter):
    """An error of ours is its sentence; only what was not foreseen needs a traceback."""

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return str(ei[1]) if isinstance(ei[1], DeepinferError) else super().formatException(ei)


def _single_errors(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _single_errors(error)
        else:
            yield error
