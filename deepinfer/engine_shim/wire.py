"""EngineService on the wire: bytes to values and back. Only this, `call_wire.py` and `state_wire.py` know its messages.

Its functions are the (de)serializers of the gRPC methods, so no message object leaves this file.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Final

from deepinfer.engine_shim.prompt_files import Piece
from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams, TokenLogprob
from deepinfer.protos import engine_service as pb

MESSAGE_BYTES: Final = 64 << 20
"""The largest message either side takes."""
METHODS: Final = {
    name: f"/{pb.SERVICE}/{name}"
    for name in ("GetInfo", "GetTokenizer", "Generate", "WatchState", "Drain", "SetLayout", "WatchPipeline")
}


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
    """Who a shim is and what its engine is. What its engine is, is known from READY on."""

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
    call_endpoint: str = ""  # host:port, where it takes calls (call_wire.py)
    call_key: bytes = field(default=b"", repr=False)  # opens either; over HTTP as a bearer token
    max_running: int = 0
    http_endpoint: str = ""  # host:port of an HTTP server that takes the calls instead; "": there is none
    prompt_digest: str = ""  # of its PromptFiles; "": what tokens a prompt will be cannot be foreseen


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


def piece_to_bytes(piece: Piece) -> bytes:
    return bytes(pb.TokenizerPiece(kind=piece.kind, file=piece.file, content=piece.content).SerializeToString())


def piece_from_bytes(data: bytes) -> Piece:
    m = pb.TokenizerPiece.FromString(data)
    return Piece(m.kind, m.file, m.content)


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
