"""Errors inside a stream of events: an engine that fails after its 200 can only say so there.

vLLM sends `data: {"error": …}` and then `data: [DONE]`, as if the answer were whole; its Anthropic endpoint sends
`event: error`. Text that a model made never looks so: it lies in JSON, where a line cannot begin.
"""

from __future__ import annotations

from typing import Any

import msgspec

_MARKS = (b'data: {"error"', b'data:{"error"', b"event: error", b"event:error")
_HELD_BYTES = 1 << 20
"""The longest line that is waited for to see whether it is an error."""
_UNSAID = "The engine broke off its answer without saying why."


class EventErrors:
    """Watches one stream; gives each piece back without an error and what follows. `failure` is its message or None."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self.is_refusal = False  # the error is about the request, not about the engine
        self.is_over = False  # all of the error has come
        self.nothing_before = False  # the error was the first event
        self._error = b""
        self._last = b"\n\n"  # of what was passed on
        self._began = False
        self._held = b""

    def passed(self, piece: bytes) -> bytes:
        """What of it may be passed on now."""
        if b"error" not in piece and piece.endswith(b"\n") and not self._held and self.failure is None:
            self._last, self._began = piece, True
            return piece
        return self._by_lines(piece)

    def rest(self) -> bytes:
        """What was held back, at the stream's end; of an error, its event."""
        held, self._held = self._held, b""
        if self.failure is None:
            return held
        event, self._error = self._error + held, b""
        return event + _separator(event)

    @property
    def separator(self) -> bytes:
        """What must come before another event: nothing, unless the stream stopped in the middle of one."""
        return _separator(self._last)

    def _by_lines(self, piece: bytes) -> bytes:
        data, self._held = self._held + piece, b""
        passed = []
        at_start = self._last.endswith(b"\n")
        for line in data.splitlines(keepends=True):
            if at_start and not line.endswith(b"\n") and (self.failure is not None or _may_be_error(line)):
                self._held = line
                break
            if at_start:
                self._look_at(line)
            if self.is_over:
                break
            if self.failure is not None:
                self._error += line
                self.is_over = not line.strip()
            else:
                passed.append(line)
                self._last, self._began = (self._last + line)[-4:], True
                at_start = line.endswith(b"\n")
        return b"".join(passed)

    def _look_at(self, line: bytes) -> None:
        if self.failure is None and line.startswith(_MARKS):
            if line.startswith(b"event"):
                self._fails(_UNSAID)
            elif (error := _decoded(line).get("error")) is not None:
                self._fails(_message(error))
                self.is_refusal = _is_refusal(error)
        elif self.failure is _UNSAID and line.startswith(b"data:"):
            self.failure = _message(_decoded(line).get("error"))

    def _fails(self, message: str) -> None:
        self.failure = message
        self.nothing_before = not self._began


def _separator(last: bytes) -> bytes:
    return b"" if last.endswith((b"\n\n", b"\n\r\n")) else b"\n\n"


def _is_refusal(error: object) -> bool:
    """vLLM tells a status in `code`, deepinfer's own engines OpenAI's type."""
    told = error if isinstance(error, dict) else {}
    code = told.get("code")
    return told.get("type") == "invalid_request_error" or (isinstance(code, int) and 400 <= code < 500)


def _may_be_error(line: bytes) -> bool:
    """Of the beginning of a line."""
    return len(line) < _HELD_BYTES and any(line.startswith(mark) or mark.startswith(line) for mark in _MARKS)


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line.partition(b":")[2], type=dict[str, Any])
    except msgspec.MsgspecError:
        return {}


def _message(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) and message else _UNSAID
