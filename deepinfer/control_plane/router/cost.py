"""What a request would cost at a replica, in seconds: its own and everybody else's. Pure.

Its first token waits for what is to be prefilled before it and for its own uncached tokens; and meanwhile the streams
that run there stand still. Its later tokens count little: they take about as long anywhere, unless the replica is
slower or fuller, or computes more prompts than others do. What it drives out of a full cache has to be computed again
if it is asked for. And where requests wait nearly everywhere, what is computed anew delays all that come later,
wherever they go: so that has a price, the same at every replica (`price_of_work`). As long as half of the replicas
have nothing to prefill, it is free.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import median
from typing import Final

from msgspec import Struct

ANSWER_WEIGHT: Final = 0.1
"""Of a second of the answer, against one before its first token: who waits for an answer reads it as it comes."""
_CROWDING: Final = 4
"""Exponent. With a share p of its time for prompts, a replica's tokens take 1/(1 - p) times as long, and one prompt
more lengthens everybody's by the square of that. But only how much p is above the least of all replicas may count:
where all are full of prompts, what is cached would count for nothing, and there would be ever more to compute. Then
twice the exponent comes to the same balance."""
HELD_UP_WEIGHT: Final = 0.2
"""Of a second in which a replica's streams stand still, times the root of how many these are: by their number itself,
long prompts would all go where few streams are."""
_MOST_DELAYED: Final = 4.0
"""Requests that one is thought to delay, at most: with more, a crowd at the one replica that has the begin of its
prompts would never be spread."""
EVICTED_WEIGHT: Final = 0.3
"""Of the seconds that it takes to compute again what is driven out: most of it is never asked for."""


class Prospect(Struct, frozen=True):
    """One replica, and what it would mean for one request to go there."""

    placement: str
    cached_tokens: float  # of its prompt, those about to be filled discounted
    uncached_tokens: float
    prefill_rate: float  # tokens a second
    token_seconds: float  # of an output token there, with the request
    token_slope: float  # by which it makes the tokens of each other one longer
    prefill_share: float  # of its time, in which it computes prompts and no tokens
    queue_seconds: float  # of prefill that comes before it
    overdue_seconds: float  # that what comes first there has been late
    running: int  # requests there, from wherever
    waiting: int  # of these, that have no seat yet
    unbegun: int  # that wait for their first token, unless it is late: then it is not work that they wait for
    slowness: float  # times longer than its rate says
    fixed_seconds: float  # until any first token there
    evicted_tokens: float
    known_by: str  # what `cached_tokens` is from: "kv", "text", or ""
    doubt: str  # why not from "kv"


class Cost(Struct, frozen=True):
    """In seconds. The sum decides."""

    fixed: float
    wait: float
    overdue: float
    prefill: float
    answer: float
    holds_up: float
    delays: float
    evicts: float

    @property
    def first_token(self) -> float:
        """Until it comes."""
        return self.fixed + self.wait + self.overdue + self.prefill

    @property
    def total(self) -> float:
        return self.first_token + self.answer + self.holds_up + self.delays + self.evicts


def price_of_work(prospects: Sequence[Prospect]) -> float:
    """Seconds by which a prompt token that has to be computed delays others, wherever it is computed."""
    delayed = min(_MOST_DELAYED, float(median([prospect.unbegun for prospect in prospects])))
    return delayed * len(prospects) / sum([prospect.prefill_rate for prospect in prospects])


def least_share(prospects: Sequence[Prospect]) -> float:
    """Of a replica's time for prompts: what cannot be avoided anywhere."""
    return min([prospect.prefill_share for prospect in prospects])


def cost_of(prospect: Prospect, answer_tokens: float, work_price: float, unavoidable: float) -> Cost:
    """Of a request with so long an answer, there. `unavoidable`: the least share of time for prompts."""
    running, rate = prospect.running, prospect.prefill_rate
    prefill = prospect.uncached_tokens / rate * prospect.slowness
    seat = prospect.waiting * answer_tokens * prospect.token_seconds / max(1, running - prospect.waiting)
    streams = max(0, running - prospect.waiting)
    tokens_flow = (1.0 + unavoidable - prospect.prefill_share) ** _CROWDING
    return Cost(
        fixed=prospect.fixed_seconds,
        wait=max(prospect.queue_seconds * prospect.slowness, seat if prospect.waiting > 1 else 0.0),
        overdue=prospect.overdue_seconds,
        prefill=prefill,
        answer=ANSWER_WEIGHT * answer_tokens * prospect.token_seconds / tokens_flow,
        holds_up=HELD_UP_WEIGHT * sqrt(streams) * prefill
        + ANSWER_WEIGHT * streams * answer_tokens * prospect.token_slope,
        delays=work_price * prospect.uncached_tokens,
        evicts=EVICTED_WEIGHT * prospect.evicted_tokens / rate,
    )
