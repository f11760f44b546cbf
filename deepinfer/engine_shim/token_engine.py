"""The port of engines that only make tokens (layer-shard, sim): token ids in, token ids out.

Text is not its business: chat templates, detokenization, stop strings and OpenAI's shapes belong to the shim's own
OpenAI app, which stands on this port. Closing the iterator of `generate` aborts the request in the engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from deepinfer.engine_shim.kv_contents import KvContents
from deepinfer.fleet.errors import InvalidRequest


class ContextTooLong(InvalidRequest):
    """The prompt, or the prompt and the answer that was asked for, do not fit into the model's context."""

    def __init__(
        self, prompt_tokens: int, max_model_len: int, *, max_tokens: int | None = None, param: str = "prompt"
    ) -> None:
        asked = "" if max_tokens is None else f" and max_tokens asks for {max_tokens} more"
        super().__init__(
            f"This model's maximum context length is {max_model_len} tokens, prompt and answer together; "
            f"the prompt has {prompt_tokens}{asked}. Shorten it{'' if max_tokens is None else ', or ask for fewer'}.",
            param=param if max_tokens is None else "max_tokens",
        )
        self.prompt_tokens = prompt_tokens
        self.max_model_len = max_model_len


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words; `error` is ours and becomes an error event."""

    STOP = "stop"
    LENGTH = "length"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen. Names and defaults are vLLM's, so that a request means one thing everywhere."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end-of-sequence ids
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None  # how many alternatives to report a token; None: no logprobs at all
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One sequence to continue. `n` answers are `n` requests."""

    id: str
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    generated: int = 0  # the last so many of `token_ids` are of an answer that an engine had begun
    transfer: Mapping[str, Any] | None = None  # where its KV goes or comes from: `kv_transfer_params` as it came


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a token before temperature, and of its likeliest alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What one step gave one request. The end-of-sequence or stop token itself is included in `token_ids`."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0  # prompt tokens that were not computed again
    error: str = ""
    transfer: Mapping[str, Any] | None = None  # of the last one: for the engine that takes the prompt's KV over


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is, once it is ready."""

    model: str
    engine: str
    engine_version: str
    max_model_len: int  # tokens, prompt and answer together
    kv_block_size: int  # tokens
    kv_blocks: int  # capacity
    dtype: str
    memory_bytes: int  # really held for weights and KV
    eos_token_ids: tuple[int, ...] = ()
    max_running: int = 0  # requests at once; 0: not known
    transfers_kv: bool = False  # to other engines of its kind, and from them


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A moment's load. Rates are exponentially weighted means of the engine's own timings; 0 until measured."""

    running: int = 0
    waiting: int = 0
    waiting_prefill_tokens: int = 0
    kv_blocks_used: int = 0
    prefill_tokens_per_second: float = 0.0
    seconds_per_output_token: float = 0.0
    stalled_seconds: float = 0.0  # since it last computed anything, with requests in hand; 0: it computes


class TokenEngine(Protocol):
    """What computes tokens."""

    @property
    def info(self) -> EngineInfo:
        """What it holds may change while it serves."""
        ...

    @property
    def kv(self) -> KvContents: ...

    def generate(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        """Deltas until one has a finish reason. Raises `ContextTooLong` before the first one."""
        ...

    def load(self) -> EngineLoad:
        """Cheap enough to ask at every change."""
        ...

    def work_done(self) -> int:
        """Tokens computed so far, of prompts and of answers. Cheap; a stall is found by it."""
        ...

    async def broken(self) -> str:
        """Wait until it can compute no more; the reason, without a full stop. For ever, if it does not break."""
        ...

    async def close(self) -> None:
        """Stop computing and free the memory."""
        ...
