"""The data path: one request to one engine and its answer's bytes back, as they come, not re-encoded.

A status is sent only when the engine's first bytes are there. Until then a failure costs nothing: one other replica is
tried, and if there is none the client gets a clean error. After that a broken answer is never made to look whole: a
stream gets an error event and no [DONE], any other body ends with its connection. The client's hang-up cancels in the
engine; a slow client slows its own stream only. A stream is not continued on another replica.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from deepinfer.control_plane.gateway.asgi import Receive, Scope, Send
from deepinfer.control_plane.gateway.body import HOP_BY_HOP, ClientGone, ModelRequest, read_request, request_id
from deepinfer.control_plane.gateway.error_reply import error_event, error_reply
from deepinfer.control_plane.gateway.hang_up import WhileClientListens
from deepinfer.control_plane.gateway.metrics import Measured, Metrics
from deepinfer.control_plane.gateway.openai_models import nobody_for
from deepinfer.control_plane.router.candidate import Candidate, RoutedRequest
from deepinfer.control_plane.router.choose import choose
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.client import Answer, EngineClient
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.fleet.errors import DeepinferError, EngineFailed

log = logging.getLogger(__name__)

ATTEMPTS = 2
BROKEN_OFF = 502  # what an answer counts as that broke off, whatever status it had begun with
TRY_ANOTHER = frozenset((500, 503))  # the engine did nothing: it is broken, full, or drains
RELAYED_PATHS = frozenset(
    (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/v1/rerank",
        "/v1/score",
        "/v1/audio/speech",
        "/tokenize",
        "/detokenize",
    )
)
_NOT_SENT_BACK = HOP_BY_HOP | {b"server", b"date", b"x-request-id"}


class AnswerBrokenOff(EngineFailed):
    """The engine failed in the middle of an answer; the connection to the client is closed, so that it notices."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer whose head and first bytes are there."""

    answer: Answer
    first: bytes
    rest: AsyncIterator[bytes]


class Relay:
    """Serves every request that names a model."""

    def __init__(self, replicas: Replicas, metrics: Metrics) -> None:
        self._replicas = replicas
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        our_id = request_id(scope)
        with self._metrics.measure(path if path in RELAYED_PATHS else "other") as measured:
            try:
                request = await read_request(scope, receive, our_id)
                if self._replicas.knows(request.model):
                    measured.goes_to(request.model)
                async with WhileClientListens(receive):
                    await self._relay(request, send, our_id, measured)
            except ClientGone:
                return
            except AnswerBrokenOff:
                measured.status = BROKEN_OFF
                raise
            except DeepinferError as error:
                reply = error_reply(error, ((b"x-request-id", our_id),))
                measured.status = reply.status
                await reply.send(send)

    async def _relay(self, request: ModelRequest, send: Send, our_id: bytes, measured: Measured) -> None:
        tried: frozenset[str] = frozenset()
        candidate = self._choose(request.model, tried)
        if candidate is None:
            raise nobody_for(self._replicas, request.model)
        while candidate is not None:
            with self._replicas.lend(candidate) as client:
                outcome = await _open(client, request.call)
                tried |= {candidate.placement}
                candidate = self._other(request.model, tried) if _did_nothing(outcome) else None
                if candidate is None:
                    await _pass_on(outcome, send, our_id, measured)
                elif isinstance(outcome, Opened):
                    outcome.answer.cancel()

    def _choose(self, model: str, tried: frozenset[str]) -> Candidate | None:
        return choose(self._replicas.candidates(model), RoutedRequest(model, tried))

    def _other(self, model: str, tried: frozenset[str]) -> Candidate | None:
        """One more try at most: a request that breaks engines must not go through all of them."""
        return self._choose(model, tried) if len(tried) < ATTEMPTS else None


async def _open(client: EngineClient, call: EngineCall) -> Opened | EngineFailed:
    """The answer's head and first bytes, or why there are none: a failure here is still a choice, not an end."""
    try:
        answer = await client.call(call)
        try:
            rest = aiter(answer)
            opened = Opened(answer, await anext(rest, b""), rest)
        except BaseException:
            answer.cancel()
            raise
    except EngineFailed as error:
        return error
    if not 200 <= answer.status <= 599 or (answer.status == 200 and not opened.first):
        answer.cancel()
        return EngineFailed(f"The engine answered with status {answer.status} and nothing that can be passed on.")
    return opened


def _did_nothing(outcome: Opened | EngineFailed) -> bool:
    return isinstance(outcome, EngineFailed) or outcome.answer.status in TRY_ANOTHER


async def _pass_on(outcome: Opened | EngineFailed, send: Send, our_id: bytes, measured: Measured) -> None:
    if isinstance(outcome, EngineFailed):
        raise outcome
    answer = outcome.answer
    try:
        measured.first_byte()
        headers = [header for header in answer.headers if header[0] not in _NOT_SENT_BACK]
        headers.append((b"x-request-id", our_id))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        measured.status = await _pass_on_body(outcome, send)
    finally:
        answer.cancel()  # nothing, if the answer is whole


async def _pass_on_body(opened: Opened, send: Send) -> int:
    """Bytes as they come; `send` waits while the client is slow. Answers the status to count."""
    piece = opened.first
    await send({"type": "http.response.body", "body": piece, "more_body": True})
    try:
        async for piece in opened.rest:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except EngineFailed as error:
        log.warning("an engine failed in the middle of an answer: %s", error)
        if not _is_event_stream(opened.answer):
            raise AnswerBrokenOff(str(error)) from error
        separated = piece.endswith(b"\n\n")  # else it stopped in the middle of an event
        event = error_event(error) if separated else b"\n\n" + error_event(error)
        await send({"type": "http.response.body", "body": event})
        return BROKEN_OFF
    await send({"type": "http.response.body", "body": b""})
    return opened.answer.status


def _is_event_stream(answer: Answer) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in answer.headers)
