"""A child process that does one long thing and tells how far it is, line by line.

What is heavy or blocks (a hub client, pip, a conversion with torch) runs this way: who asked for it stays small, and
giving up is killing the child's session.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from deepinfer.fleet.oom_score import offer

_LINES_KEPT = 20
_LONGEST_LINE = 2000


@dataclass(frozen=True)
class Done:
    exit_status: int
    last_lines: tuple[str, ...]


async def run_errand(
    module: str,
    *arguments: str,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    kept_open: Sequence[int] = (),
) -> Done:
    """Run `python -m module …`; every line it prints goes to `on_line`. It inherits `kept_open`, say a lock."""
    command = [sys.executable, "-m", module, *arguments]
    return await run_command(command, environment=environment, on_line=on_line, kept_open=kept_open)


async def run_command(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    on_line: Callable[[str], None],
    kept_open: Sequence[int] = (),
) -> Done:
    """The same for any program."""
    child = await asyncio.create_subprocess_exec(
        *command,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        pass_fds=kept_open,
    )
    offer(child.pid)
    lines: deque[str] = deque(maxlen=_LINES_KEPT)
    try:
        async for line in _lines(cast(asyncio.StreamReader, child.stdout)):
            lines.append(line)
            on_line(line)
        return Done(await child.wait(), tuple(lines))
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


async def _lines(output: asyncio.StreamReader) -> AsyncIterator[str]:
    """A progress bar that draws itself anew after a carriage return is a line each time."""
    rest = b""
    while data := await output.read(1 << 16):
        *whole, rest = re.split(rb"[\r\n]+", rest + data)
        rest = rest[-_LONGEST_LINE:]
        for raw in whole:
            if line := raw[-_LONGEST_LINE:].decode(errors="replace").strip():
                yield line
    if line := rest.decode(errors="replace").strip():
        yield line
