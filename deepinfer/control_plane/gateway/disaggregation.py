"""Prompts prefilled by one replica for another that decodes.

Where a replica of role `decode` was chosen and it pays (`router/pairing.py`), one of role `prefill` computes the prompt
first, and what it says of it goes with the request. A replica that decodes is a whole engine: whatever hinders the
first leg, it prefills itself, and the request is answered as any other. That is counted, by its reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from msgspec.structs import replace

from deepinfer.control_plane.gateway.admission import Admission, Asked
from deepinfer.control_plane.gateway.admitted import Admitted
from deepinfer.control_plane.gateway.attempts import Asking, Attempts
from deepinfer.control_plane.gateway.body import ModelRequest
from deepinfer.control_plane.gateway.kv_transfer import TRANSFERRED_PATHS, prefill_call, transfer_in
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.gateway.renaming import renamed
from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.choose import trusted
from deepinfer.control_plane.router.connection import Connection
from deepinfer.control_plane.router.loan import Loan
from deepinfer.control_plane.router.pairing import Side, pair
from deepinfer.control_plane.router.prefillers import is_adapter, may_be_prefilled, prefillers
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.client import EngineClient
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)

LEAST_PATIENCE_SECONDS: Final = 10.0
PATIENCE: Final = 4.0
"""Times the seconds that were foreseen. Who takes longer is not waited for."""

Hindrance = Literal["unsuited", "nobody", "busy", "dearer", "refused", "failed", "abandoned"]


class Disaggregation:
    """Of one gateway."""

    def __init__(self, replicas: Replicas, admission: Admission, attempts: Attempts) -> None:
        self._replicas = replicas
        self._admission = admission
        self._attempts = attempts
        self._now = asyncio.get_running_loop().time
        self._without: set[str] = set()  # models that had nobody to prefill for them, as was said

    def concerns(self, request: ModelRequest) -> bool:
        """Whether it may take two replicas; asked of every request."""
        return may_be_prefilled(self._replicas, request.model) and request.call.path in TRANSFERRED_PATHS

    async def ask(self, admitted: Admitted) -> Asking | None:
        """The first attempt, at the replica that is lent, with a prompt that was prefilled elsewhere. None: without.

        The loan is given back if this is cancelled.
        """
        request, loan, measured = admitted.request, admitted.loan, admitted.measured
        if loan.deployment not in self._replicas.roles.decoding or request.call.path not in TRANSFERRED_PATHS:
            return None
        try:
            transfer = await self._prefilled(request.call, admitted.asked, loan, measured)
            return self._attempts.ask(admitted.asked, request.call, loan, measured, transfer) if transfer else None
        except BaseException:
            loan.give_back()
            raise

    async def _prefilled(self, call: EngineCall, asked: Asked, loan: Loan, measured: Measured) -> bytes:
        leg = self._planned(call, asked, loan)
        if isinstance(leg, str):
            measured.prefilled(leg)
            return b""
        measured.prefills(leg.connection.placement)
        outcome: Hindrance | Literal["separate"] = "abandoned"
        try:
            transfer = await self._run(leg, measured)
            outcome = "separate" if transfer else "refused"
            return transfer
        except EngineFailed as error:
            outcome = "failed"
            log.warning("%s did not prefill, so %s does: %s", leg.connection.placement, loan.placement, error)
            return b""
        finally:
            measured.prefilled(outcome)

    def _planned(self, call: EngineCall, asked: Asked, loan: Loan) -> _Leg | Hindrance:
        found = prefillers(self._replicas, asked.model, loan)
        self._say_if_nobody(asked.model, found)
        if not found:
            return "nobody"
        own = prefill_call(call)
        if own is None:
            return "unsuited"
        tokens, now = float(asked.request.prompt_tokens), self._now()
        roomy = {c.placement: c for c in trusted(found) if c.has_room(tokens, now)}
        if not roomy:
            return "busy"
        decoding = [c for c in self._replicas.of(loan.deployment) if c.placement == loan.placement]
        sides = self._sides([*decoding, *roomy.values()], asked.request, now)
        own_side = _without(loan, sides.pop(0), decoding[0], now) if decoding else Side(loan.placement)
        plan = pair(tokens, own_side, sides)
        if not plan.prefill:
            return "dearer"
        chosen = roomy[plan.prefill]
        if not is_adapter(self._replicas, asked.model, loan):
            own = renamed(own, chosen.deployment)
        return _Leg(chosen, asked.request, own, tokens, LEAST_PATIENCE_SECONDS + PATIENCE * plan.seconds)

    async def _run(self, leg: _Leg, measured: Measured) -> bytes:
        """b"" for what the replica would not do. `EngineFailed`."""
        choice = self._admission.router.to_prefill(leg.connection, leg.request, self._now())
        with self._replicas.lend(choice, leg.tokens) as engine:
            try:
                async with asyncio.timeout(leg.patience):
                    return transfer_in(await _asked(engine, measured.traced(leg.call)))
            except TimeoutError:
                raise EngineFailed(f"it took longer than {leg.patience:.0f} s") from None

    def _sides(self, connections: Sequence[Connection], request: RoutedRequest, now: float) -> list[Side]:
        resident = self._admission.router.resident(connections, request, now)
        return [
            Side(c.placement, c.outlook.speed.prefill_rate, c.outlook.queue_seconds(now), held, c.last_used)
            for c, held in zip(connections, resident, strict=True)
        ]

    def _say_if_nobody(self, model: str, found: Sequence[Connection]) -> None:
        if found:
            self._without.discard(model)
        elif model not in self._without:
            self._without.add(model)
            log.warning("no prefill replica is ready for %s; those that decode it prefill themselves", model)


def _without(loan: Loan, side: Side, connection: Connection, now: float) -> Side:
    """As it is for others than the request itself, which was sent there already as far as its books know."""
    own = loan.forecast.uncached_tokens / connection.outlook.speed.rate(now)
    return replace(side, queue_seconds=max(0.0, side.queue_seconds - own))


class _Leg(NamedTuple):
    """A prompt for one replica."""

    connection: Connection
    request: RoutedRequest
    call: EngineCall
    tokens: float
    patience: float


async def _asked(engine: EngineClient, call: EngineCall) -> bytes:
    answer = await engine.call(call)
    try:
        if answer.status >= 500:
            raise EngineFailed(f"it answered with status {answer.status}")
        if answer.status != 200:
            log.info("a replica would not prefill: it answered with status %d", answer.status)
            return b""
        return await answer.read()
    finally:
        answer.cancel()  # nothing, if it is whole
