"""The data path: one request to one engine and its answer's bytes back, as they come, not re-encoded.

A status is sent only when the engine's first bytes are there. Until then a failure costs nothing: another replica is
tried (`attempts.py`), and if there is none the client gets a clean error. After that a broken answer is never made to
look whole: a stream of completions goes on on another replica (`going_on.py`); where that cannot be, it gets an error
event and no [DONE]; any other body ends with its connection. A stream in which the engine itself tells an error is
broken too. The client's hang-up cancels in the engine; a slow client slows its own stream only.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

from deepinfer.control_plane.access.caller import Caller, caller_of, refuse_other_models
from deepinfer.control_plane.gateway.admission import Asked, Turn
from deepinfer.control_plane.gateway.asgi import Headers, Receive, Scope, Send
from deepinfer.control_plane.gateway.attempts import Attempts, Begun
from deepinfer.control_plane.gateway.bill import Bill
from deepinfer.control_plane.gateway.body import ClientGone, ModelRequest, read_request, request_id
from deepinfer.control_plane.gateway.client_connection import CONNECTION
from deepinfer.control_plane.gateway.client_stream import ClientStream
from deepinfer.control_plane.gateway.continuation import CONTINUED_PATHS
from deepinfer.control_plane.gateway.engine_errors import engine_error
from deepinfer.control_plane.gateway.error_reply import error_event, error_reply
from deepinfer.control_plane.gateway.event_errors import EventErrors
from deepinfer.control_plane.gateway.going_on import Another, go_on
from deepinfer.control_plane.gateway.hang_up import WhileClientListens
from deepinfer.control_plane.gateway.kept import Kept
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.gateway.model_queue import urgency
from deepinfer.control_plane.gateway.openai_models import nobody_for
from deepinfer.control_plane.gateway.others import Others
from deepinfer.control_plane.gateway.parts import Parts
from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.control_plane.openai_errors import QUEUE_POSITION, QUEUE_SECONDS, StreamInterrupted, code_of
from deepinfer.engine_shim.client import Answer
from deepinfer.engine_shim.frames import HOP_BY_HOP, EngineCall
from deepinfer.fleet.errors import DeepinferError, EngineFailed

log = logging.getLogger(__name__)

BROKEN_OFF = 502  # what an answer counts as that broke off, whatever status it had begun with
_NOT_SENT_BACK = HOP_BY_HOP | {
    b"server",
    b"date",
    b"x-request-id",
    b"access-control-allow-origin",  # which pages may read an answer is not the engine's to say
    b"access-control-allow-credentials",
    b"access-control-expose-headers",
}


class AnswerBrokenOff(EngineFailed):
    """The engine failed in the middle of an answer; the connection to the client is closed, so that it notices."""


@dataclass(frozen=True, slots=True)
class Passing:
    """An answer on its way to its client; `another` lends who may go on if it breaks in the middle, None: nobody."""

    call: EngineCall
    another: Another | None
    measured: Measured
    headers: Headers  # of ours


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
        self._now = asyncio.get_running_loop().time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        our_id = request_id(scope)
        measured, bill = self._metrics.measure(path if path in RELAYED_PATHS else "other", our_id, scope), Bill()
        try:
            with measured:
                await self._serve(receive, send, measured, bill)
        finally:
            if bill.settle(measured.tokens, self._now()):
                self._ledger.changed.set()

    async def _serve(self, receive: Receive, send: Send, measured: Measured, bill: Bill) -> None:
        caller = caller_of(measured.scope)
        measured.called_by(caller.name if caller.id else "")
        try:
            request = await read_request(measured.scope, receive, measured.request_id, self._media_domains)
            refuse_other_models(caller, request.model, request.call)
            if not self._replicas.knows(request.model):
                raise nobody_for(self._replicas, request.model)
            measured.goes_to(request.model)
            asked = self._asked(request, caller, bill)
            with WhileClientListens(measured.scope[CONNECTION]):
                await self._relay(request, asked, send, (measured, bill))
        except ClientGone:
            return
        except AnswerBrokenOff:
            measured.status = BROKEN_OFF
            raise
        except DeepinferError as error:
            reply = error_reply(error, ((b"x-request-id", measured.request_id),), measured.scope["path"])
            measured.refused(reply.status, code_of(error))
            await reply.send(send)

    async def _relay(self, request: ModelRequest, asked: Asked, send: Send, told: tuple[Measured, Bill]) -> None:
        measured, bill = told
        turn = await self._admission.turn(asked, measured)
        if asked.is_alias:
            measured.goes_to(turn.loan.deployment)
        drain, began, took = self._admission.traffic(asked.model).drain, self._now(), None
        drain.began(asked.work)
        try:
            begun = await self._attempts.begin(asked, request.call, turn.loan, measured)
            try:
                measured.first_byte(begun.opened.errors is not None)
                if begun.opened.answer.status >= 400:
                    measured.status = await _refuse(begun, request, send, measured)
                else:
                    own = ((b"x-request-id", measured.request_id), *_queue_headers(turn), *bill.headers(self._now()))
                    passing = Passing(begun.call, self._others(asked, begun, measured), measured, own)
                    measured.status = await _pass_on(begun, send, passing)
                took = self._now() - began if measured.status < 400 else None
            finally:
                begun.opened.answer.cancel()  # nothing, if the answer is whole
                begun.loan.give_back()
        finally:
            drain.ended(asked.work, self._now(), took)

    def _others(self, asked: Asked, begun: Begun, measured: Measured) -> Another | None:
        is_continued = begun.call.path in self._continued_paths
        return Others(self._admission, asked, begun, measured) if is_continued else None

    def _asked(self, request: ModelRequest, caller: Caller, bill: Bill) -> Asked:
        """Raises `RateLimited`."""
        size, wishes, now = len(request.call.body), request.wishes, self._now()
        experience = self._admission.traffic(request.model).experience
        work = experience.work(size, wishes.most_tokens, wishes.choices)
        bill.foreseen(experience, size)
        if caller.limits is not None:
            bill.charge(self._ledger.usage(caller.id, caller.limits, now), int(work), now)
            self._ledger.changed.set()
        priority = (-caller.priority, urgency(wishes.priority))
        deadline = now + request.patience if request.patience else math.inf
        return Asked(request.model, priority, work, size, deadline, self._replicas.is_alias(request.model))


def _queue_headers(turn: Turn) -> Headers:
    if not turn.waited:
        return ()
    return ((QUEUE_POSITION.encode(), b"%d" % turn.position), (QUEUE_SECONDS.encode(), b"%.3f" % turn.waited))


async def _refuse(begun: Begun, request: ModelRequest, send: Send, measured: Measured) -> int:
    """The status that the engine said, in the shape that the client reads."""
    answer, own = begun.opened.answer, ((b"x-request-id", measured.request_id),)
    await (await engine_error(answer, begun.opened.first, request, own)).send(send)
    begun.loan.answered()
    return answer.status


async def _pass_on(begun: Begun, send: Send, passing: Passing) -> int:
    """The status to count."""
    opened, answer = begun.opened, begun.opened.answer
    headers = [header for header in answer.headers if header[0] not in _NOT_SENT_BACK]
    headers += passing.headers
    client = ClientStream(send, passing.measured.streamed)
    client.begin(answer.status, tuple(headers))
    if opened.errors is not None and client.is_chunked:
        broken = await _pass_on_events(begun, opened.errors, passing, client)
        return BROKEN_OFF if broken else answer.status
    try:
        client.write(opened.first)
        await answer.pour(client.write, client.drained)
        client.end()
    except EngineFailed as error:
        begun.loan.failed()
        log.warning("an engine failed in the middle of an answer: %s", error)
        raise AnswerBrokenOff(str(error)) from error
    begun.loan.answered()
    return answer.status


async def _pass_on_events(begun: Begun, errors: EventErrors, passing: Passing, client: ClientStream) -> bool:
    """The same, and what breaks off goes on elsewhere, or is told as an event. Whether it was told."""
    kept = Kept() if passing.another is not None else None
    passed = errors.passed if kept is None else lambda piece: kept.passed(errors.passed(piece))
    client.write(begun.opened.first if kept is None else kept.passed(begun.opened.first))
    failure = await _poured(begun.opened.answer, passed, errors, client)
    if failure is None:
        begun.loan.answered()
        last = errors.rest() if kept is None else kept.passed(errors.rest()) + kept.rest()
    else:
        begun.loan.failed()
        log.warning("an engine failed in the middle of an answer: %s", failure)
        told = errors.rest() if errors.failure is not None else b""
        last = told or errors.separator + error_event(failure, passing.call.path)
        if kept is not None and passing.another is not None and not errors.is_refusal:
            try:
                await go_on(passing.call, kept, client, passing.another, str(failure))
                last, failure = b"", None
            except StreamInterrupted as error:
                log.warning("an answer ends in the middle: %s", error)
                last = (b"" if kept.is_whole else errors.separator) + error_event(error, passing.call.path)
    client.end(last)
    return failure is not None


async def _poured(
    answer: Answer, passed: Callable[[bytes], bytes], errors: EventErrors, client: ClientStream
) -> EngineFailed | None:
    """Why it broke off, if it did, by the engine's own word first."""
    try:
        await answer.pour(lambda piece: client.write(passed(piece)), client.drained)
    except EngineFailed as error:
        return error if errors.failure is None else EngineFailed(errors.failure)
    return None if errors.failure is None else EngineFailed(errors.failure)
