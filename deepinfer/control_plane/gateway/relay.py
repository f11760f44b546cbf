"""The data path: one request to one engine and its answer's bytes back, as they come, not re-encoded.

A status is sent only when the engine's first bytes are there. Until then a failure costs nothing: another replica is
tried (`attempts.py`), and if there is none the client gets a clean error. After that see `passing.py`. The client's
hang-up cancels in the engine; a slow client slows its own stream only.

Most requests have a small whole body, a replica with room and a small whole answer: they are an `Exchange`, and a task
serves the others, from their begin or from where they stop being so (`going_on`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable
from functools import partial

from msgspec.structs import replace

from deepinfer.control_plane.access.caller import Caller, caller_of, refuse_other_models
from deepinfer.control_plane.gateway.admission import Asked
from deepinfer.control_plane.gateway.admitted import Admitted, told_of_queue
from deepinfer.control_plane.gateway.asgi import App, Receive, Scope, Send
from deepinfer.control_plane.gateway.attempts import Asking, Attempts, Begun
from deepinfer.control_plane.gateway.bill import Bill
from deepinfer.control_plane.gateway.body import (
    ClientGone,
    ModelRequest,
    json_request,
    new_id,
    read_request,
    request_id,
)
from deepinfer.control_plane.gateway.client_connection import CONNECTION, ClientConnection
from deepinfer.control_plane.gateway.continuation import CONTINUED_PATHS
from deepinfer.control_plane.gateway.disaggregation import Disaggregation
from deepinfer.control_plane.gateway.drain_rate import DrainRate
from deepinfer.control_plane.gateway.engine_errors import engine_error
from deepinfer.control_plane.gateway.error_reply import error_reply
from deepinfer.control_plane.gateway.exchange import Exchange
from deepinfer.control_plane.gateway.going_on import Another
from deepinfer.control_plane.gateway.hang_up import WhileClientListens
from deepinfer.control_plane.gateway.known_head import KnownHead
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.gateway.model_queue import urgency
from deepinfer.control_plane.gateway.openai_models import nobody_for
from deepinfer.control_plane.gateway.others import Others
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.passing import BROKEN_OFF, AnswerBrokenOff, Passing, pass_on
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.control_plane.gateway.routed import UnreadPrompt, routed_request, with_tokens
from deepinfer.control_plane.openai_errors import code_of
from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.fleet.errors import DeepinferError


class Relay:
    """Serves every request that names a model."""

    def __init__(self, parts: Parts) -> None:
        self._replicas = parts.replicas
        self._metrics = parts.metrics
        self._admission = parts.admission
        self._ledger = parts.ledger
        self._media_domains = parts.media_domains
        self._continued_paths = CONTINUED_PATHS if parts.continues else frozenset()
        self._attempts = Attempts(parts.admission)
        self._disaggregation = Disaggregation(parts.replicas, parts.admission, self._attempts)
        self.now = asyncio.get_running_loop().time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        our_id = request_id(scope)
        measured, bill = self._metrics.measure(path if path in RELAYED_PATHS else "other", our_id, scope), Bill()
        try:
            await self._served(send, measured, self._serve(receive, send, measured, bill))
        finally:
            self._settle(measured, bill)

    def exchange(self, connection: ClientConnection, head: KnownHead, caller: Caller, body: bytes) -> Exchange | None:
        """A request with a whole body, on its way. None if it cannot be served like that; then nothing has happened."""
        scope = connection.scope
        our_id, bill = head.request_id or new_id(), Bill()
        try:
            request = json_request(scope, head.sent, body, our_id, self._media_domains)
            refuse_other_models(caller, request.model, request.call)
            if not self._replicas.knows(request.model) or self._disaggregation.concerns(request):
                return None
            asked = self._asked(request, caller, our_id)
            routed = self._routed(asked, request)
            if isinstance(routed, UnreadPrompt):
                return None
            asked = replace(asked, request=routed)
            loan = self._admission.seat(asked)
            if loan is None:
                return None
            try:
                self._charge(bill, asked, caller)
            except DeepinferError:
                loan.give_back()
                raise
        except DeepinferError:
            return None  # the application finds it too, and says it
        measured = self._metrics.measure(scope["path"], our_id, scope)
        if caller.id:
            measured.called_by(caller.name)
        measured.goes_to(loan.deployment if asked.is_alias else request.model)
        measured.admitted(0.0)
        try:
            asking = self._attempts.ask(asked, request.call, loan, measured)
        except BaseException:
            loan.give_back()
            raise
        exchange = Exchange(request, asked, loan, (measured, bill), self._drain(request.model))
        exchange.begin(self, connection, asking)
        return exchange

    def going_on(self, admitted: Admitted, asking: Asking) -> App:
        """Serves the rest of an exchange."""
        return partial(self._go_on, admitted, asking)

    def ended(self, exchange: Exchange) -> None:
        exchange.end(self.now())
        exchange.measured.end()
        self._settle(exchange.measured, exchange.bill)

    async def _go_on(self, admitted: Admitted, asking: Asking, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._served(send, admitted.measured, self._answer_while_heard(admitted, send, asking))
        finally:
            self._settle(admitted.measured, admitted.bill)

    async def _served(self, send: Send, measured: Measured, serving: Awaitable[None]) -> None:
        """Or refused."""
        with measured:
            try:
                await serving
            except ClientGone:
                return
            except AnswerBrokenOff:
                measured.status = BROKEN_OFF
                raise
            except DeepinferError as error:
                reply = error_reply(error, ((b"x-request-id", measured.request_id),), measured.scope["path"])
                measured.refused(reply.status, code_of(error))
                await reply.send(send)

    async def _serve(self, receive: Receive, send: Send, measured: Measured, bill: Bill) -> None:
        caller = caller_of(measured.scope)
        measured.called_by(caller.name if caller.id else "")
        request = await read_request(measured.scope, receive, measured.request_id, self._media_domains)
        refuse_other_models(caller, request.model, request.call)
        if not self._replicas.knows(request.model):
            raise nobody_for(self._replicas, request.model)
        measured.goes_to(request.model)
        asked = self._asked(request, caller, measured.request_id)
        self._charge(bill, asked, caller)
        with WhileClientListens(measured.scope[CONNECTION]):
            routed = self._routed(asked, request)
            if isinstance(routed, UnreadPrompt):
                routed = await routed.read(asked.request)
            asked = replace(asked, request=routed)
            turn = await self._admission.turn(asked, measured)
            if asked.is_alias:
                measured.goes_to(turn.loan.deployment)
            admitted = Admitted(request, asked, turn.loan, (measured, bill), self._drain(request.model))
            admitted.queued = told_of_queue(turn)
            await self._answer(admitted, send)

    async def _answer_while_heard(self, admitted: Admitted, send: Send, asking: Asking) -> None:
        with WhileClientListens(admitted.measured.scope[CONNECTION]):
            await self._answer(admitted, send, asking)

    async def _answer(self, admitted: Admitted, send: Send, asking: Asking | None = None) -> None:
        request, asked, measured = admitted.request, admitted.asked, admitted.measured
        try:
            asking = asking or await self._disaggregation.ask(admitted)
            begun = await self._attempts.begin(asked, request.call, admitted.loan, measured, asking)
            try:
                measured.first_byte(begun.opened.errors is not None)
                if begun.opened.answer.status >= 400:
                    measured.status = await _refuse(begun, request, send, measured)
                else:
                    own = admitted.headers(self.now())
                    passing = Passing(begun.call, self._others(asked, begun, measured), measured, own)
                    measured.status = await pass_on(begun, send, passing)
            finally:
                begun.opened.answer.cancel()  # nothing, if the answer is whole
                begun.loan.give_back()
        finally:
            admitted.end(self.now())

    def _others(self, asked: Asked, begun: Begun, measured: Measured) -> Another | None:
        is_continued = begun.call.path in self._continued_paths
        return Others(self._admission, asked, begun, measured) if is_continued else None

    def _asked(self, request: ModelRequest, caller: Caller, our_id: bytes) -> Asked:
        size, wishes = len(request.call.body), request.wishes
        experience = self._admission.traffic(request.model).experience
        work = experience.work(size, wishes.most_tokens, wishes.choices)
        priority = (-caller.priority, urgency(wishes.priority))
        deadline = self.now() + request.patience if request.patience else math.inf
        routed = routed_request(request, experience, our_id)
        return Asked(request.model, priority, work, size, deadline, self._replicas.is_alias(request.model), routed)

    def _routed(self, asked: Asked, request: ModelRequest) -> RoutedRequest | UnreadPrompt:
        return with_tokens(asked.request, request, self._replicas.prompts(request.model))

    def _charge(self, bill: Bill, asked: Asked, caller: Caller) -> None:
        """Raises `RateLimited`; then nothing was charged."""
        bill.foreseen(self._admission.traffic(asked.model).experience, asked.size)
        if caller.limits is not None:
            now = self.now()
            bill.charge(self._ledger.usage(caller.id, caller.limits, now), int(asked.work), now)
            self._ledger.changed.set()

    def _drain(self, model: str) -> DrainRate:
        return self._admission.traffic(model).drain

    def _settle(self, measured: Measured, bill: Bill) -> None:
        if bill.settle(measured.tokens, self.now()):
            self._ledger.changed.set()


async def _refuse(begun: Begun, request: ModelRequest, send: Send, measured: Measured) -> int:
    """The status that the engine said, in the shape that the client reads."""
    answer, own = begun.opened.answer, ((b"x-request-id", measured.request_id),)
    await (await engine_error(answer, begun.opened.first, request, own)).send(send)
    begun.loan.answered()
    return answer.status
