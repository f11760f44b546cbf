"""A request that has its turn, until its answer's end."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import msgspec

from deepinfer.control_plane.gateway.admission import Asked, Turn
from deepinfer.control_plane.gateway.asgi import Headers
from deepinfer.control_plane.gateway.bill import Bill
from deepinfer.control_plane.gateway.body import ModelRequest
from deepinfer.control_plane.gateway.drain_rate import DrainRate
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.openai_errors import QUEUE_POSITION, QUEUE_SECONDS
from deepinfer.control_plane.router.loan import Loan

REPLICA: Final = b"x-deepinfer-replica"
ROUTING: Final = b"x-deepinfer-routing"
"""JSON: why it is that one, with every term of every candidate."""


class Admitted:
    """Its work is in hand from now on, until `end`. `loan`: of the replica it is to have first."""

    queued: Headers = ()  # what its client is told of that

    def __init__(
        self, request: ModelRequest, asked: Asked, loan: Loan, told: tuple[Measured, Bill], drain: DrainRate
    ) -> None:
        self.request = request
        self.asked = asked
        self.loan = loan
        self.measured, self.bill = told
        self._drain = drain
        self._began = perf_counter()
        drain.began(asked.work)

    def headers(self, now: float) -> Headers:
        """Of ours, for its answer."""
        own = ((b"x-request-id", self.measured.request_id), *self.bill.headers(now), *self.queued)
        if not self.request.explains:
            return own
        decision = (self.measured.loan or self.loan).decision
        return (*own, (REPLICA, decision.chosen.encode()), (ROUTING, msgspec.json.encode(decision.told())))

    def end(self, now: float) -> None:
        """Whatever became of it: what it was measured as says so."""
        took = perf_counter() - self._began if self.measured.status < 400 else None
        self._drain.ended(self.asked.work, now, took)


def told_of_queue(turn: Turn) -> Headers:
    """To who had to wait."""
    if not turn.waited:
        return ()
    return ((QUEUE_POSITION.encode(), b"%d" % turn.position), (QUEUE_SECONDS.encode(), b"%.3f" % turn.waited))
