"""The data path: one request to one engine and its answer's bytes back, as they come, not re-encoded.

A status is sent only when the engine's first bytes are there. Until then a failure costs nothing: one other replica is
tried, and if there is none the client gets a clean error. After that a broken answer is never made to look whole: a
stream gets an error event and no [DONE], any other body ends with its connection. A stream in which the engine itself
tells an error is broken too. The client's hang-up cancels in the engine; a slow client slows its own stream only. A
stream is not continued on another replica.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from deepinfer.control_plane.gateway.asgi import Receive, Scope, Send
from deepinfer.control_plane.gateway.body import ClientGone, ModelRequest, read_request, request_id
from deepinfer.control_plane.gateway.client_stream import ClientStream
from deepinfer.control_plane.gateway.error_reply import error_event, error_reply
from deepinfer.control_plane.gateway.event_errors import EventErrors
from deepinfer.control_plane.gateway.hang_up import WhileClientListens
from deepinfer.control_plane.gateway.metrics import Measured, Metrics
from deepinfer.control_plane.gateway.openai_models import nobody_for
from deepinfer.control_plane.management.same_origin import refuse_foreign_pages
from deepinfer.control_plane.router.candidate import Candidate, RoutedRequest
from deepinfer.control_plane.router.choose import choose
from deepinfer.control_plane.router.replicas import Replicas
from deepinfer.engine_shim.client import Answer, EngineClient
from deepinfer.engine_shim.frames import HOP_BY_HOP, EngineCall
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
        "/v1/messages/count_tokens",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/pooling",
        "/classify",
        "/invocations",
        "/v1/audio/speech",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/tokenize",
        "/detokenize",
    )
)
_NOT_SENT_BACK = HOP_BY_HOP | {b"server", b"date", b"x-request-id"}


class AnswerBrokenOff(EngineFailed):
    """The engine failed in the middle of an answer; the connection to the client is closed, so that it notices."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An answer whose head and first bytes are there. `errors` watches it, if it is a stream of events."""

    answer: Answer
    first: bytes
    errors: EventErrors | None


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
                if path not in RELAYED_PATHS:  # it may be about the engine itself, such as emptying its cache
                    refuse_foreign_pages(scope["method"], dict(scope["headers"]))
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
                if isinstance(outcome, EngineFailed):
                    if candidate is None:
                        raise outcome
                    continue
                try:
                    if candidate is None:
                        measured.first_byte()
                        measured.status = await _pass_on(outcome, request.call.path, send, our_id)
                finally:
                    outcome.answer.cancel()  # nothing, if the answer is whole

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
            opened = await _begun(answer)
        except BaseException:
            answer.cancel()
            raise
    except EngineFailed as error:
        return error
    if not 200 <= answer.status <= 599 or (answer.status == 200 and not opened.first):
        answer.cancel()
        return EngineFailed(f"The engine answered with status {answer.status} and nothing that can be passed on.")
    return opened


async def _begun(answer: Answer) -> Opened:
    """Raises `EngineFailed` also for a stream whose first event is an error."""
    if not _is_event_stream(answer):
        return Opened(answer, await anext(answer, b""), None)
    errors, first = EventErrors(), b""
    async for piece in answer:
        first = errors.passed(piece)
        if first:
            break
    if errors.failure is not None and errors.nothing_before:
        raise EngineFailed(errors.failure)
    return Opened(answer, first or errors.rest(), errors)


def _did_nothing(outcome: Opened | EngineFailed) -> bool:
    return isinstance(outcome, EngineFailed) or outcome.answer.status in TRY_ANOTHER


async def _pass_on(opened: Opened, path: str, send: Send, our_id: bytes) -> int:
    """The status to count."""
    answer = opened.answer
    headers = [header for header in answer.headers if header[0] not in _NOT_SENT_BACK]
    headers.append((b"x-request-id", our_id))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    client = ClientStream(send)
    if opened.errors is not None and client.is_chunked:
        return await _pass_on_events(opened, opened.errors, path, client)
    try:
        await _pass_on_body(opened, client)
    except EngineFailed as error:
        log.warning("an engine failed in the middle of an answer: %s", error)
        raise AnswerBrokenOff(str(error)) from error
    await client.send(b"", more=False)
    return answer.status


async def _pass_on_body(opened: Opened, client: ClientStream) -> None:
    """Bytes as they come; a slow client is waited for."""
    if client.is_chunked:
        client.write(opened.first)
        await opened.answer.pour(client.write, client.drained)
    else:
        await client.send(opened.first, more=True)
        async for piece in opened.answer:
            await client.send(piece, more=True)


async def _pass_on_events(opened: Opened, errors: EventErrors, path: str, client: ClientStream) -> int:
    """The same, and what breaks off is told as an event, once: by the engine if it can, else here."""
    client.write(opened.first)
    last = b""
    try:
        await opened.answer.pour(lambda piece: client.write(errors.passed(piece)), client.drained)
    except EngineFailed as error:
        if errors.failure is None:
            last = errors.separator + error_event(error, path)
            errors.failure = str(error)
    await client.send(last or errors.rest(), more=False)
    if errors.failure is None:
        return opened.answer.status
    log.warning("an engine failed in the middle of an answer: %s", errors.failure)
    return BROKEN_OFF


def _is_event_stream(answer: Answer) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in answer.headers)
