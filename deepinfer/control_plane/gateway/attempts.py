"""From a request whose turn has come to an answer that has begun: on another replica where the first one fails.

What could not be reached was not asked, so up to three are tried. What broke or answered with a 5xx before its first
byte is tried once more, for a request that breaks engines must not go through all of them. Both cost the gateway's
retry budget.
"""

from __future__ import annotations

import asyncio

from msgspec import Struct

from deepinfer.control_plane.gateway.admission import Admission, Asked
from deepinfer.control_plane.gateway.event_errors import EventErrors
from deepinfer.control_plane.gateway.first_bytes import check_first_event, first_bytes, kind_of, says_nothing
from deepinfer.control_plane.gateway.kv_transfer import with_transfer
from deepinfer.control_plane.gateway.measured import Failure, Measured
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.control_plane.gateway.renaming import renamed
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.retry_budget import RetryBudget
from deepinfer.engine_shim.client import Answer, EngineClient
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.fleet.errors import EngineFailed, EngineUnreachable

ATTEMPTS = 2
ATTEMPTS_TO_REACH = 3
TRY_ANOTHER = frozenset((500, 502, 503, 504))  # the engine did nothing: it is broken, full, or drains


class Opened(Struct, frozen=True):
    """An answer whose head and first bytes are there. `errors` watches it, if it is a stream of events."""

    answer: Answer
    first: bytes
    errors: EventErrors | None


class Begun(Struct, frozen=True):
    """An answer to `call`, and the loan to give back at its end. `failed`: placements that were tried before."""

    opened: Opened
    loan: Loan
    call: EngineCall
    failed: frozenset[str]


class Asking(Struct, frozen=True):
    """An attempt under way: the call as this engine knows its model, as it was sent, and its answer to be.

    No `answer`: there was no connection to send it on. `transfers`: another replica has prefilled the prompt.
    """

    call: EngineCall
    sent: EngineCall
    answer: Answer | None
    transfers: bool = False


class Attempts:
    """Of one gateway."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._now = asyncio.get_running_loop().time
        self._budget = RetryBudget(self._now())

    def ask(self, asked: Asked, call: EngineCall, loan: Loan, measured: Measured, transfer: bytes = b"") -> Asking:
        """Of the replica that is lent, at once. Whatever goes wrong, the answer tells. `transfer`: where KV lies."""
        if not measured.attempts:
            self._budget.earn()
        measured.lent(loan)
        own = renamed(call, loan.deployment) if asked.is_alias else call
        sent = measured.traced(own)
        if transfer:
            sent = with_transfer(sent, transfer)
        return Asking(own, sent, loan.client.ask(sent), bool(transfer))

    async def begin(
        self, asked: Asked, call: EngineCall, loan: Loan, measured: Measured, asking: Asking | None = None
    ) -> Begun:
        """Raises `EngineFailed` when no attempt is left; the loan is given back then. `asking`: the first attempt."""
        tried: frozenset[str] = frozenset()
        earlier: Loan | None = None
        while True:
            try:
                asking = asking or self.ask(asked, call, loan, measured)
                outcome = await _open(loan.client, asking)
            except BaseException:
                loan.give_back()
                raise
            if asking.transfers and _may_be_the_transfer(outcome):
                measured.failed(_reason(outcome))
                asking = None  # the same replica prefills itself
                continue
            if isinstance(outcome, Opened) and outcome.answer.status not in TRY_ANOTHER:
                loan.began()
                return Begun(outcome, loan, asking.call, tried)
            measured.failed(_reason(outcome))
            _judge(loan, earlier, outcome)
            tried |= {loan.placement}
            other = self._other(asked, tried, outcome)
            if other is None and isinstance(outcome, Opened):
                return Begun(outcome, loan, asking.call, tried)  # its own words are the best there is
            if isinstance(outcome, Opened):
                outcome.answer.cancel()
            loan.give_back()
            if other is None:
                raise outcome  # type: ignore[misc]
            earlier, loan, asking = loan, other, None

    def _other(self, asked: Asked, tried: frozenset[str], outcome: Opened | EngineFailed) -> Loan | None:
        most = ATTEMPTS_TO_REACH if isinstance(outcome, EngineUnreachable) else ATTEMPTS
        other = self._admission.another(asked, tried) if len(tried) < most else None
        if other is not None and not self._budget.spend(self._now()):
            other.give_back()
            return None
        return other


def _reason(outcome: Opened | EngineFailed) -> Failure:
    if isinstance(outcome, Opened):
        return "status"
    return "connect" if isinstance(outcome, EngineUnreachable) else "broken"


def _may_be_the_transfer(outcome: Opened | EngineFailed) -> bool:
    """What an answer failed of: whoever prefilled the prompt had nothing against the request."""
    if isinstance(outcome, Opened) and outcome.answer.status >= 400:
        outcome.answer.cancel()
        return True
    return isinstance(outcome, EngineFailed) and not isinstance(outcome, EngineUnreachable)


def _judge(loan: Loan, earlier: Loan | None, outcome: Opened | EngineFailed) -> None:
    """A status that two of them give is about the request."""
    loan.failed()
    if isinstance(outcome, Opened) and earlier is not None:
        loan.acquitted()
        earlier.acquitted()


async def _open(client: EngineClient, asking: Asking) -> Opened | EngineFailed:
    """The answer's head and first bytes, or why there are none: a failure here is still a choice, not an end."""
    try:
        answer = await client.call(asking.sent, asking.answer)
        try:
            kind = kind_of(answer)
            opened = await _begun(answer, kind)
        except BaseException:
            answer.cancel()
            raise
    except EngineFailed as error:
        return error
    # Elsewhere a bare 200 may be all there is to say.
    must_say = asking.sent.path in RELAYED_PATHS and asking.sent.method != "HEAD"
    if not 200 <= answer.status <= 599 or (must_say and says_nothing(answer, kind, opened.first)):
        answer.cancel()
        return EngineFailed(f"The engine answered with status {answer.status} and nothing that can be passed on.")
    return opened


async def _begun(answer: Answer, kind: bytes) -> Opened:
    """Raises `EngineFailed` also for a stream whose first event is an error."""
    if not kind.startswith(b"text/event-stream"):
        return Opened(answer, await first_bytes(answer, kind), None)
    errors, first = EventErrors(), b""
    async for piece in answer:
        first = errors.passed(piece)
        if first or errors.is_over:
            break
    if errors.failure is not None and errors.nothing_before:
        raise EngineFailed(errors.failure)
    check_first_event(first)
    return Opened(answer, first or errors.rest(), errors)
