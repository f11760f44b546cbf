"""Streams of /v1/chat/completions as cheaply as they can be read: a process of its own, told on stdin what to send.

An order is a JSON line {"port": P, "bodies": [{…}, …], "at_once": true}: all are sent at once, each over a connection
of its own that is open before the clock starts; or one after the other over one. The answer is a JSON line of `Batch`.
While the clock runs nothing is parsed: what arrived is kept, and only the end of each answer is looked for.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

import uvloop

from deepinfer.fleet.die_with_parent import dying_with_me

_IDLE_SECONDS = 2.0
"""Connections idle for longer are not used again: HTTP servers close them, and that would race with a request."""
_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True)
class Batch:
    """What a batch of streams took. Seconds; `firsts` until each stream's first token, in the order of the bodies."""

    seconds: float
    firsts: tuple[float, ...]
    tokens: int
    events: int
    load_cpu: float  # of the process that asked


class StreamLoad:
    """The asking process, seen from the bench."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            dying_with_me([sys.executable, "-m", "benchmarks.stream_load"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def batch(self, port: int, bodies: list[dict[str, Any]], at_once: bool = True) -> Batch:
        """Ends the bench when an answer was not whole."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"port": port, "bodies": bodies, "at_once": at_once}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The load generator ended; port {port} did not answer as it should (see above).")
        answer = json.loads(line)
        return Batch(**{**answer, "firsts": tuple(answer["firsts"])})

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # in the middle of a batch
            self._process.kill()
            self._process.wait()


class _Stream(asyncio.Protocol):
    """One connection; one answer at a time."""

    def __init__(self) -> None:
        self.open = True
        self.used = time.perf_counter()
        self._whole: asyncio.Future[None] | None = None
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self._fail(f"closed in the middle of {self.answer()[-500:]!r}")

    def ask(self, request: bytes) -> asyncio.Future[None]:
        self._whole = asyncio.get_running_loop().create_future()
        self._pieces = []
        self._end = b""
        self.first = 0.0
        self.asked = time.perf_counter()
        self._transport.write(request)
        return self._whole

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        if not self.first:
            self._look_for_token()
        self._end = (self._end + data)[-len(_LAST_CHUNK) :]
        if self._end == _LAST_CHUNK and self._whole is not None:
            self.used = time.perf_counter()
            self._whole.set_result(None)

    def _look_for_token(self) -> None:
        answer = self.answer()
        if not answer.startswith(b"HTTP/1.1 200"[: len(answer)]):
            self._fail(f"refused: {answer[:500]!r}")
        elif answer.count(b'"content":') > 1:  # the role's event comes before it
            self.first = time.perf_counter()

    def _fail(self, fault: str) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(ConnectionError(fault))
        self._transport.close()

    def answer(self) -> bytes:
        return b"".join(self._pieces)

    def close(self) -> None:
        self._transport.close()


class _Connections:
    """Of each port, those that can be used again."""

    def __init__(self) -> None:
        self._idle: dict[int, list[_Stream]] = {}

    async def take(self, port: int, count: int) -> list[_Stream]:
        streams = [stream for stream in self._idle.pop(port, []) if self._usable(stream)][:count]
        loop = asyncio.get_running_loop()
        while len(streams) < count:
            streams.append((await loop.create_connection(_Stream, "127.0.0.1", port))[1])
        self._idle[port] = streams
        return streams

    def _usable(self, stream: _Stream) -> bool:
        if stream.open and time.perf_counter() - stream.used < _IDLE_SECONDS:
            return True
        stream.close()
        return False


def _request(port: int, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (port, len(content)) + content
    )


def _tokens(answer: bytes) -> int:
    """As the answer's last event says (`stream_options`)."""
    found = _TOKENS.findall(answer)
    if not found or not answer.rstrip(b"\r\n0").endswith(b"data: [DONE]"):
        raise ConnectionError(f"not a whole answer: {answer[-500:]!r}")
    return int(found[-1])


@dataclass(frozen=True)
class _Answer:
    body: bytes
    first: float


async def _answer(stream: _Stream, request: bytes) -> _Answer:
    await stream.ask(request)
    return _Answer(stream.answer(), stream.first - stream.asked)


async def _run(connections: _Connections, port: int, bodies: list[dict[str, Any]], at_once: bool) -> Batch:
    requests = [_request(port, body) for body in bodies]
    streams = await connections.take(port, len(bodies) if at_once else 1)
    cpu, started = time.process_time(), time.perf_counter()
    if at_once:
        answers = await asyncio.gather(*map(_answer, streams, requests))
    else:
        answers = [await _answer(streams[0], request) for request in requests]
    return Batch(
        time.perf_counter() - started,
        tuple(answer.first for answer in answers),
        sum(_tokens(answer.body) for answer in answers),
        sum(answer.body.count(b"\n\n") for answer in answers),
        time.process_time() - cpu,
    )


async def _main() -> None:
    connections, loop = _Connections(), asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        batch = await _run(connections, **json.loads(line))
        print(json.dumps(asdict(batch)), flush=True)


if __name__ == "__main__":
    uvloop.run(_main())
