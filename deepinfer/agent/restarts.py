"""When an engine that failed may be tried again. Pure. 1 s, 2 s, 4 s … 300 s; ten good minutes forgive everything."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deepinfer.fleet.resources import ReplicaStatus

FIRST_BACKOFF_SECONDS = 1.0
LONGEST_BACKOFF_SECONDS = 300.0
FORGIVEN_AFTER_SECONDS = 600.0


@dataclass(frozen=True)
class Restarts:
    """The history of one epoch of one placement on this node, whichever agent looked after it."""

    total: int = 0  # processes started after the first
    in_a_row: int = 0  # failures without ten good minutes between them
    not_before: float = 0.0

    def after_failure(self, now: float, ready_seconds: float, at_least: float = 0.0) -> Restarts:
        """`ready_seconds`: how long it had been ready when it failed. `at_least`: seconds to wait, whatever it was."""
        earlier = 0 if ready_seconds >= FORGIVEN_AFTER_SECONDS else self.in_a_row
        doublings = min(earlier, 16)  # 2**1000 is no float
        backoff = min(FIRST_BACKOFF_SECONDS * 2**doublings, LONGEST_BACKOFF_SECONDS)
        return replace(self, in_a_row=earlier + 1, not_before=now + max(backoff, at_least))

    def after_start(self) -> Restarts:
        """Another process of the same epoch."""
        return replace(self, total=self.total + 1)

    def and_before(self, told: ReplicaStatus) -> Restarts:
        """With what an earlier agent had counted: its end forgives no crash."""
        return replace(self, total=self.total + told.restarts, in_a_row=self.in_a_row + told.failures)

    def forgiven(self) -> Restarts:
        """Ten good minutes have passed."""
        return replace(self, in_a_row=0)
