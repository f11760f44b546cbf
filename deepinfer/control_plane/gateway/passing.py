"""An answer on its way to its client, as its pieces come. It has begun, so a failure is never made to look whole.

A stream of completions goes on on another replica (`going_on.py`); where that cannot be, it gets an error event and no
[DONE]; any other body ends with its connection. A stream in which the engine itself tells an error is broken too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from deepinfer.control_plane.gateway.asgi import Headers, Send
from deepinfer.control_plane.gateway.attempts import Begun
from deepinfer.control_plane.gateway.client_stream import ClientStream
from deepinfer.control_plane.gateway.error_reply import error_event
from deepinfer.control_plane.gateway.event_errors import EventErrors
from deepinfer.control_plane.gateway.going_on import Another, go_on
from deepinfer.control_plane.gateway.kept import Kept
from deepinfer.control_plane.gateway.measured import Measured
from deepinfer.control_plane.openai_errors import StreamInterrupted
from deepinfer.engine_shim.client import Answer
from deepinfer.engine_shim.frames import HOP_BY_HOP, EngineCall
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)

BROKEN_OFF: Final = 502
"""What an answer counts as that broke off, whatever status it had begun with."""
NOT_SENT_BACK: Final = HOP_BY_HOP | {
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


async def pass_on(begun: Begun, send: Send, passing: Passing) -> int:
    """The status to count."""
    opened, answer = begun.opened, begun.opened.answer
    headers = [header for header in answer.headers if header[0] not in NOT_SENT_BACK]
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
