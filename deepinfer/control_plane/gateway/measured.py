"""One request on its way through the gateway: what becomes of it, for the metrics, the access log and its trace.

The relay tells each step as it happens; nothing is summed up before the end. `streamed` is on the way of every token.
"""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from deepinfer.control_plane.gateway.asgi import Scope
from deepinfer.control_plane.gateway.series import ReplicaSeries
from deepinfer.control_plane.gateway.usage import Tokens, Told, end_of, finished_reason, tokens_told
from deepinfer.control_plane.openai_errors import CLIENT_GONE
from deepinfer.engine_shim.frames import EngineCall

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.metrics import Metrics
    from deepinfer.control_plane.router.loan import Loan

Failure = Literal["connect", "status", "broken", "timeout"]
"""What an attempt can fail of."""


class Measured:
    """Counted when its block ends, or by `end` where it has none."""

    status = CLIENT_GONE
    reason = ""  # why it was refused
    key_name = model = replica = prefilled_by = finished = ""
    attempts = pieces = sent_bytes = 0
    tokens = Tokens(0, 0)
    queue_seconds = first_seconds = seconds = 0.0
    is_continued = False
    _earlier = _before = _last = b""
    _told: Told | None = None
    _failure: Failure = "broken"
    _flying: ReplicaSeries | None = None
    loan: Loan | None = None  # of the latest attempt
    _streams = _waits = False

    def __init__(self, metrics: Metrics, path: str, request_id: bytes, scope: Scope) -> None:
        self.started = perf_counter()
        self.request_id = request_id
        self.scope = scope
        self._metrics = metrics
        self._counted = metrics.model("")
        self._path = path
        self._spans = None if metrics.spans is None else metrics.spans.begin(scope, path)

    def __enter__(self) -> Measured:
        return self

    def called_by(self, key_name: str) -> None:
        """Whose key it was; "" is nobody's."""
        self.key_name = key_name

    def goes_to(self, model: str) -> None:
        """The model is known here, so it may be a label."""
        self.model = model
        self._counted = self._metrics.model(model)

    def queued(self, position: int) -> None:
        self._counted.waiting += 1
        self._waits = True
        if self._spans is not None:
            self._spans.queued(position)

    def admitted(self, waited_seconds: float) -> None:
        """Of every request that a replica is going to be chosen for, whether it had to wait or not."""
        self._stop_waiting()
        self.queue_seconds = waited_seconds
        self._counted.queue.observe(waited_seconds)
        if self._spans is not None:
            self._spans.admitted()

    def lent(self, loan: Loan) -> None:
        """An attempt begins, and one that went before is over."""
        self.loan = loan
        self.sent_to(loan.placement)

    def sent_to(self, placement: str) -> None:
        """To a replica."""
        if self.attempts:
            self._counted.retries[self._failure] += 1
        self._land()
        self.attempts += 1
        self.replica = placement
        self._flying = self._metrics.replica(self.model, placement)
        self._flying.running += 1
        if self._spans is not None:
            self._spans.sent_to(placement, self.model)

    def prefills(self, placement: str) -> None:
        """Another replica computes the prompt, before any attempt."""
        self.prefilled_by = placement
        self._flying = self._metrics.replica(self.model, placement)
        self._flying.running += 1
        if self._spans is not None:
            self._spans.sent_to(placement, self.model)

    def prefilled(self, outcome: str) -> None:
        """`separate`, or why the replica that answers prefills itself."""
        self._counted.prefills[outcome] += 1
        self._land()
        if outcome != "separate":
            self.prefilled_by = ""
            if self._spans is not None:
                self._spans.failed(outcome)

    def traced(self, call: EngineCall) -> EngineCall:
        """What this attempt's engine gets: with our place in the trace, if there is one; else as it came."""
        return call if self._spans is None else self._spans.carried_by(call)

    def failed(self, reason: Failure) -> None:
        """The attempt did."""
        self._failure = reason
        if self._spans is not None:
            self._spans.failed(reason)

    def refused(self, status: int, reason: str) -> None:
        """It got an error of ours, under one of a bounded set of codes."""
        self.status, self.reason = status, reason

    def first_byte(self, streams: bool) -> None:
        """Only a stream's first bytes are its first token."""
        self.first_seconds = perf_counter() - self.started
        self._streams = streams

    def streamed(self, piece: bytes) -> None:
        """A piece went to the client; three are kept for what they say of the whole."""
        self.pieces += 1
        self.sent_bytes += len(piece)
        self._earlier = self._before
        self._before = self._last
        self._last = piece

    def answered(self, body: bytes, told: Told | None) -> None:
        """All of it went to the client at once, and says that of itself, if it was understood."""
        self.first_seconds = perf_counter() - self.started
        self.status = 200
        self.pieces, self.sent_bytes, self._last, self._told = 1, len(body), body, told

    def continued(self) -> None:
        """What another replica had begun goes on."""
        self.is_continued = True
        self._counted.continued += 1
        if self._spans is not None:
            self._spans.continued()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self.status == CLIENT_GONE:
            self.status = 500  # which the server says for what nobody foresaw
        self.end()

    def end(self) -> None:
        """All of it is over."""
        self.seconds = perf_counter() - self.started
        self._stop_waiting()
        replica = self._flying
        self._land()
        if self._told is None:
            self._told = self._told_at_its_end()
        self.tokens = self._told.tokens
        if self.loan is not None and self.attempts == 1 and not self.is_continued:
            self.loan.told(self.tokens.prompt, self.tokens.cached)
        self._count_model()
        if replica is not None:
            self._count_replica(replica, self._told)
        if self._metrics.access_log is not None:
            self._metrics.access_log.add(self)
        if self._spans is not None:
            self._spans.end(self)

    def _count_model(self) -> None:
        model = self._counted
        model.requests[self._path, self.status] += 1
        model.latency.observe(self.seconds)
        if self.status == CLIENT_GONE:
            model.disconnects += 1
        elif self.status >= 400 and not self.attempts:
            model.rejected[self.reason or str(self.status)] += 1

    def _told_at_its_end(self) -> Told:
        end = end_of(self._earlier, self._before, self._last)
        tokens = tokens_told(end)
        if tokens is None:
            tokens = Tokens(0, max(self.pieces - 1, 0) if self._streams else 0)  # one piece is [DONE]
        return Told(tokens, finished_reason(end))

    def _count_replica(self, replica: ReplicaSeries, told: Told) -> None:
        replica.prompt_tokens += self.tokens.prompt
        replica.generation_tokens += self.tokens.completion
        if self._streams:
            replica.first_token.observe(self.first_seconds)
            gaps = self.tokens.completion - 1
            if gaps > 0:
                mean = (self.seconds - self.first_seconds) / gaps
                replica.between_tokens.observe(mean, gaps)
                self._counted.token.observe(mean)
        if self.status < 400:
            self.finished = told.finished
        elif self.status == CLIENT_GONE:
            self.finished = "abort"
        elif self.status >= 500:
            self.finished = "error"
        if self.finished:
            replica.finished[self.finished] += 1

    def _stop_waiting(self) -> None:
        if self._waits:
            self._waits = False
            self._counted.waiting -= 1

    def _land(self) -> None:
        if self._flying is not None:
            self._flying.running -= 1
            self._flying = None
