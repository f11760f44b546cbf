"""A Python module run as a process, whose lines a test can wait for."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress


class ProcessLines:
    """Standard output and error together, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.seen: list[str] = []

    @classmethod
    async def start(cls, module: str, *arguments: str, environment: Mapping[str, str]) -> ProcessLines:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            *arguments,
            env=dict(environment),
            start_new_session=True,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return cls(process)

    async def line_with(self, text: str, seconds: float = 20.0) -> str:
        """The next line that holds `text`."""
        async with asyncio.timeout(seconds):
            while line := await self._line():
                if text in line:
                    return line
        raise AssertionError(f"it ended without saying {text!r}:\n{''.join(self.seen)}")

    async def end(self, number: signal.Signals) -> int:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self, seconds: float = 30.0) -> int:
        async with asyncio.timeout(seconds):
            while await self._line():
                pass
            return await self.process.wait()

    @property
    def text(self) -> str:
        return "".join(self.seen)

    async def _line(self) -> str:
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        self.seen.append(line)
        return line
