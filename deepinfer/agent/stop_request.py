"""What the signals asked this worker for so far."""

from __future__ import annotations

import asyncio
import signal


class StopRequest:
    """`drains`: the first SIGTERM only asks to have everything moved away; the second one is a plain one."""

    def __init__(self, *, drains: bool) -> None:
        self.drain = asyncio.Event()
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.leave = asyncio.Event()  # also what cannot be ended
        self.engines_too = False
        self._drains = drains

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminated)
        loop.add_signal_handler(signal.SIGINT, self._interrupted)

    def _terminated(self) -> None:
        if self._drains and not self.drain.is_set():
            self.drain.set()
        else:
            self.asked.set()

    def _interrupted(self) -> None:
        if self.hurry.is_set():
            self.leave.set()
        if self.engines_too:
            self.hurry.set()
        self.engines_too = True
        self.asked.set()
