"""The access log: a line of JSON for every request of the data path and the management API, at its end. Never prompts,
keys or queries.

Lines go to a thread four times a second, so that neither a slow disk nor a reader of stdout who sleeps holds up a
stream; what such a one leaves unwritten for ten seconds is given up. A kill loses the last quarter of a second. A file
that was moved or removed is made anew, which is all that logrotate needs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import msgspec

from deepinfer.control_plane.openai_errors import CLIENT_GONE
from deepinfer.fleet.errors import DeepinferError

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.measured import Measured

log = logging.getLogger(__name__)

STDOUT = "-"
WRITE_SECONDS = 0.25
MOST_WAITING = 40
"""Batches that may wait to be written."""
END_SECONDS = 2.0
_PATH_BYTES = 512
_MODE = 0o640


class CannotLog(DeepinferError):
    """The access log cannot be written."""


class Line(msgspec.Struct):
    """What is told of one request; `time` is its end, `attempts` how many replicas had it."""

    time: datetime
    request_id: str
    client: str
    key: str
    method: str
    path: str
    model: str
    replica: str
    status: int
    reason: str
    attempts: int
    queue_ms: float
    ttft_ms: float
    total_ms: float
    prompt_tokens: int
    completion_tokens: int
    bytes: int
    disconnected: bool
    continued: bool
    prefilled_by: str  # another replica than the one that answered


_encode = msgspec.json.Encoder().encode


@asynccontextmanager
async def access_log(where: str) -> AsyncIterator[AccessLog | None]:
    """To a file or, for "-", to stdout; None for "". Raises `CannotLog`."""
    if not where:
        yield None
        return
    lines = AccessLog(LogFile(where))
    try:
        yield lines
    finally:
        await asyncio.to_thread(lines.close)


class AccessLog:
    """Belongs to the event loop that it was made on."""

    def __init__(self, file: LogFile) -> None:
        self._lines: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._batches: SimpleQueue[bytes | None] = SimpleQueue()
        self._file = file
        self._lost = 0
        self._writer = threading.Thread(target=self._write, name="access log", daemon=True)
        self._writer.start()

    def add(self, request: Measured) -> None:
        if not self._lines:
            self._loop.call_later(WRITE_SECONDS, self._hand_over)
        self._lines.append(_encode(_line(request)))

    def close(self) -> None:
        """Waits for what is being written, but not for ever."""
        self._hand_over()
        self._batches.put(None)
        self._writer.join(END_SECONDS)

    def _hand_over(self) -> None:
        if self._batches.qsize() >= MOST_WAITING:
            if not self._lost:
                log.warning("the access log cannot be written as fast as requests come; lines are left out")
            self._lost += len(self._lines)
        elif self._lines:
            self._batches.put(b"\n".join((*self._lines, b"")))
            if self._lost:
                log.warning("the access log goes on; %d lines were left out", self._lost)
                self._lost = 0
        self._lines.clear()

    def _write(self) -> None:
        """The thread."""
        failing = False
        while (batch := self._batches.get()) is not None:
            try:
                self._file.write(batch)
                failing = False
            except (OSError, CannotLog) as error:
                if not failing:
                    log.warning("the access log is not written: %s", error)
                failing = True
        self._file.close()


class LogFile:
    """Opened to append; several processes may."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._is_stdout = path == STDOUT
        self._file = 1 if self._is_stdout else self._opened()

    def write(self, data: bytes) -> None:
        if not self._is_stdout and self._was_moved():
            moved, self._file = self._file, self._opened()
            os.close(moved)
        while data:
            data = data[os.write(self._file, data) :]

    def close(self) -> None:
        if not self._is_stdout:
            os.close(self._file)

    def _opened(self) -> int:
        try:
            return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotLog(
                f"The access log {self._path} cannot be opened: {reason}; see [serve] access_log."
            ) from error

    def _was_moved(self) -> bool:
        ours = os.fstat(self._file)
        try:
            there = self._path.stat()
        except OSError:
            return True
        return (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev)


def _line(request: Measured) -> Line:
    scope = request.scope
    client = scope["client"]
    return Line(
        datetime.now(UTC),
        request.request_id.decode(),
        client[0] if client else "",
        request.key_name,
        scope["method"],
        scope["raw_path"][:_PATH_BYTES].decode("latin-1"),
        request.model,
        request.replica,
        request.status,
        request.reason,
        request.attempts,
        round(request.queue_seconds * 1000, 2),
        round(request.first_seconds * 1000, 2),
        round(request.seconds * 1000, 2),
        request.tokens.prompt,
        request.tokens.completion,
        request.sent_bytes,
        request.status == CLIENT_GONE,
        request.is_continued,
        request.prefilled_by,
    )
