"""vLLM's KV batches in their order, each one once; what is missing is asked for, what is lost is said. No I/O.

vLLM numbers its batches from 0 and keeps the newest for a replay. A replay is asked for from the last batch that was
applied, not from the one after it: if it does not begin with just that batch, it was made by another process, or the
publisher has dropped what came between.
"""

from __future__ import annotations

from typing import Final, Protocol

_AHEAD: Final = 1024
"""So many batches may wait for an earlier one; a replay brings the others again."""


class Sink(Protocol):
    """Who lives by the batches."""

    def take(self, payload: bytes) -> None:
        """The next batch."""
        ...

    def lost(self, why: str) -> None:
        """Nothing that was taken before may be believed any more."""
        ...


class BatchOrder:
    """Fed with what the live socket brings and, one answer at a time, with what the replay socket brings."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._next = 0
        self._last: bytes | None = None  # the batch before `_next`
        self._ahead: dict[int, bytes] = {}
        self._settled = False  # a replay has told where to begin
        self._begins: tuple[int, bytes] | None = None  # what the present answer has to begin with
        self._taken = 0  # batches of the present answer that were used or known
        self._ignoring = False  # the rest of the present answer

    def live(self, sequence: int, payload: bytes) -> bool:
        """Whether a replay is needed: something is missing, or an older number came (again, or of a new process)."""
        if self._settled and sequence == self._next:
            self._take(sequence, payload)
            self._take_ahead()
            return bool(self._ahead)
        if sequence >= self._next:
            if len(self._ahead) < _AHEAD:
                self._ahead[sequence] = payload
            return True
        if (sequence, payload) == (self._next - 1, self._last):
            return False
        self._settled = False  # of another process, what comes next may have the very number that is waited for
        return True

    def ask(self) -> int:
        """The number a replay has to begin with. What `replayed` is given from now on is the answer."""
        self._taken, self._ignoring = 0, False
        self._ahead.clear()  # the answer has to bring them: else they are of an earlier life of the publisher
        self._begins = None if self._last is None else (self._next - 1, self._last)
        return self._next if self._begins is None else self._begins[0]

    def replayed(self, sequence: int, payload: bytes) -> None:
        if self._ignoring:
            return
        if not self._taken and self._begins not in (None, (sequence, payload)):
            self._lose("the publisher began anew, or has dropped what was missing")
            self._ignoring = True  # it begins somewhere in the middle
        elif sequence > self._next and self._taken > 1:
            self._ignoring = True  # a long answer has holes where the sender's buffer was full: ask for the rest
        else:
            self._taken += 1
            self._take_or_skip(sequence, payload)

    def replay_ends(self) -> bool:
        """Whether another one is needed."""
        if not self._taken and not self._ignoring and self._begins is not None:
            self._lose("the publisher began anew")
            return True
        if self._ignoring:
            return True
        self._settled = True
        self._take_ahead()
        return bool(self._ahead)

    def _take_or_skip(self, sequence: int, payload: bytes) -> None:
        if sequence > self._next:
            self._lose(f"the batches {self._next} to {sequence - 1} cannot be had any more")
            self._next = sequence
        if sequence == self._next:
            self._take(sequence, payload)

    def _take(self, sequence: int, payload: bytes) -> None:
        self._next, self._last = sequence + 1, payload
        self._sink.take(payload)

    def _take_ahead(self) -> None:
        self._ahead = {number: payload for number, payload in self._ahead.items() if number >= self._next}
        while self._next in self._ahead:
            self._take(self._next, self._ahead.pop(self._next))

    def _lose(self, why: str) -> None:
        self._next, self._last, self._settled = 0, None, False
        self._ahead.clear()
        self._sink.lost(why)
