"""EngineService on the wire: bytes to values and back. Only this module and `state_wire.py` know its protobuf messages.

Its functions are the (de)serializers of the gRPC methods, so no message object leaves this file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final

from deepinfer.engine_shim.frames import (
    AnswerFrame,
    Body,
    CallFrame,
    Cancel,
    End,
    EngineCall,
    Failure,
    Head,
    Headers,
    MoreBody,
    Open,
)
from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams, TokenLogprob
from deepinfer.protos import engine_service as pb

MESSAGE_BYTES: Final = 64 << 20
"""The largest message either side takes."""
METHODS: Final = {name: f"/{pb.SERVICE}/{name}" for name in ("GetInfo", "Call", "Generate", "WatchState", "Drain")}


class ShimPhase(StrEnum):
    """What a shim says of itself."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


PHASES = (ShimPhase.STARTING, ShimPhase.STARTING, ShimPhase.READY, ShimPhase.DRAINING, ShimPhase.FAILED)
PHASE_NUMBERS = {phase: number for number, phase in enumerate(PHASES) if number}


@dataclass(frozen=True, slots=True)
class ShimInfo:
    """Who a shim is and what its engine is. The fields after `served_names` are known from READY on."""

    placement: str
    epoch: int
    phase: ShimPhase
    message: str  # progress, or why it failed
    endpoint: str  # host:port for gateways
    pid: int
    engine: str
    served_names: tuple[str, ...]
    engine_version: str = ""
    max_model_len: int = 0
    kv_block_size: int = 0
    kv_blocks: int = 0
    dtype: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A typed request: text or token ids to continue. `sampling.max_tokens` 0 means: as many as fit."""

    request_id: str
    prompt: str | tuple[int, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class GenerateDelta:
    """What one step gave a typed request."""

    token_ids: tuple[int, ...] = ()
    text: str = ""  # whole characters only
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    error: str = ""


def nothing(_: object) -> bytes:
    return b""  # of the requests that say nothing


def ignored(_: bytes) -> None:
    """The reading side of `nothing`."""


def info_to_bytes(info: ShimInfo) -> bytes:
    return bytes(pb.EngineInfo(**asdict(info) | {"phase": PHASE_NUMBERS[info.phase]}).SerializeToString())


def info_from_bytes(data: bytes) -> ShimInfo:
    m = pb.EngineInfo.FromString(data)
    fields: dict[str, Any] = {f.name: getattr(m, f.name) for f in m.DESCRIPTOR.fields}
    return ShimInfo(**fields | {"phase": PHASES[m.phase], "served_names": tuple(m.served_names)})


def call_frames_to_bytes(frames: Iterable[CallFrame]) -> bytes:
    message = pb.CallFrames()
    for frame in frames:
        m = message.frames.add(stream=frame.stream)
        match frame:
            case Open(_, call, whole):
                m.open.method, m.open.path, m.open.query = call.method, call.path, call.query
                m.open.body, m.open.end = call.body, whole
                _add_headers(m.open.headers, call.headers)
            case MoreBody(_, data, last):
                m.body = data
                if last:
                    message.frames.add(stream=frame.stream, end=True)
            case Cancel():
                m.cancel = True
    return bytes(message.SerializeToString())


def call_frames_from_bytes(data: bytes) -> list[CallFrame]:
    return [_call_frame(m) for m in pb.CallFrames.FromString(data).frames]


def _call_frame(m: Any) -> CallFrame:
    match m.WhichOneof("kind"):
        case "open":
            o = m.open
            return Open(m.stream, EngineCall(o.method, o.path, o.query, _headers(o.headers), o.body), o.end)
        case "body":
            return MoreBody(m.stream, m.body, last=False)
        case "end":
            return MoreBody(m.stream, b"", last=True)
        case _:  # a frame of a kind this version does not know cannot be answered
            return Cancel(m.stream)


def answer_frames_to_bytes(frames: Iterable[AnswerFrame]) -> bytes:
    message = pb.AnswerFrames()
    add = message.frames.add
    for frame in frames:
        match frame:
            case Body(stream, data):
                add(stream=stream, body=data)
            case Head(stream, status, headers):
                head = add(stream=stream).head
                head.status = status
                _add_headers(head.headers, headers)
            case End(stream):
                add(stream=stream, end=True)
            case Failure(stream, text):
                add(stream=stream, failure=text)
    return bytes(message.SerializeToString())


def answer_frames_from_bytes(data: bytes) -> list[AnswerFrame]:
    return [_answer_frame(m) for m in pb.AnswerFrames.FromString(data).frames]


def _answer_frame(m: Any) -> AnswerFrame:
    match m.WhichOneof("kind"):
        case "body":
            return Body(m.stream, m.body)
        case "head":
            return Head(m.stream, m.head.status, _headers(m.head.headers))
        case "end":
            return End(m.stream)
        case "failure":
            return Failure(m.stream, m.failure)
        case kind:
            return Failure(m.stream, f"The engine's shim sent a frame of an unknown kind ({kind}); update this side.")


def _add_headers(target: Any, headers: Headers) -> None:
    for name, value in headers:
        target.add(name=name, value=value)


def _headers(source: Any) -> Headers:
    return tuple((h.name, h.value) for h in source)


def drain_to_bytes(timeout_seconds: float) -> bytes:
    return bytes(pb.DrainRequest(timeout_seconds=timeout_seconds).SerializeToString())


def drain_from_bytes(data: bytes) -> float:
    return float(pb.DrainRequest.FromString(data).timeout_seconds)


def unfinished_to_bytes(unfinished: int) -> bytes:
    return bytes(pb.DrainReply(unfinished=unfinished).SerializeToString())


def unfinished_from_bytes(data: bytes) -> int:
    return int(pb.DrainReply.FromString(data).unfinished)


def generate_to_bytes(request: GenerateRequest) -> bytes:
    sampling = asdict(request.sampling) | {"logit_bias": dict(request.sampling.logit_bias)}
    m = pb.GenerateRequest(request_id=request.request_id, sampling=sampling)
    if isinstance(request.prompt, str):
        m.text = request.prompt
    else:
        m.token_ids.ids.extend(request.prompt)
        m.token_ids.SetInParent()  # an empty prompt is still a prompt of token ids
    return bytes(m.SerializeToString())


def generate_from_bytes(data: bytes) -> GenerateRequest:
    m = pb.GenerateRequest.FromString(data)
    prompt = tuple(m.token_ids.ids) if m.WhichOneof("prompt") == "token_ids" else m.text
    return GenerateRequest(m.request_id, prompt, _sampling(m.sampling))


def _sampling(m: Any) -> SamplingParams:
    fields: dict[str, Any] = {f.name: getattr(m, f.name) for f in m.DESCRIPTOR.fields}
    for optional in ("seed", "logprobs"):
        fields[optional] = fields[optional] if m.HasField(optional) else None
    for never_zero in ("top_p", "repetition_penalty"):  # so 0 on the wire means: not said
        fields[never_zero] = fields[never_zero] or 1.0
    lists = {"stop_token_ids": tuple(m.stop_token_ids), "logit_bias": tuple(m.logit_bias.items())}
    return SamplingParams(**fields | lists)


def delta_to_bytes(delta: GenerateDelta) -> bytes:
    m = pb.GenerateDelta(
        token_ids=delta.token_ids,
        text=delta.text,
        finish_reason=delta.finish_reason or "",
        cached_tokens=delta.cached_tokens,
        error=delta.error,
    )
    for entry in delta.logprobs:
        top = [{"token_id": token_id, "logprob": logprob} for token_id, logprob in entry.top]
        m.logprobs.add(token_id=entry.token_id, logprob=entry.logprob, top=top)
    return bytes(m.SerializeToString())


def delta_from_bytes(data: bytes) -> GenerateDelta:
    m = pb.GenerateDelta.FromString(data)
    return GenerateDelta(
        token_ids=tuple(m.token_ids),
        text=m.text,
        logprobs=tuple(_logprob(entry) for entry in m.logprobs),
        finish_reason=FinishReason(m.finish_reason) if m.finish_reason else None,
        cached_tokens=m.cached_tokens,
        error=m.error,
    )


def _logprob(m: Any) -> TokenLogprob:
    return TokenLogprob(m.token_id, m.logprob, tuple((other.token_id, other.logprob) for other in m.top))
