"""Token deltas to text deltas: detokenized, cut at stop strings, closed early when one is found.

Streamed and whole answers, and both OpenAI endpoints, go through here, so they can only say the same thing.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from deepinfer.engine_shim.text.stop_strings import StopStrings
from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.token_engine import (
    ContextTooLong,
    EngineInfo,
    FinishReason,
    SamplingParams,
    TokenDelta,
    TokenEngine,
    TokenLogprob,
    TokenRequest,
)
from deepinfer.fleet.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class TextShape:
    """How tokens become text."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one step gave. `made` counts all tokens, also the one that ended the answer and has no text."""

    text: str
    made: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    transfer: Mapping[str, Any] | None = None


class TextGenerator:
    """A token engine with its tokenizer."""

    def __init__(self, engine: TokenEngine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self.tokenizer = tokenizer

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    def fitting(self, prompt_tokens: int, max_tokens: int | None, *, param: str = "prompt") -> int:
        """How many tokens may be made: all that fit, unless the request says a number. `ContextTooLong`."""
        limit = self.info.max_model_len
        if prompt_tokens >= limit:
            raise ContextTooLong(prompt_tokens, limit, param=param)
        if max_tokens is not None and prompt_tokens + max_tokens > limit:
            raise ContextTooLong(prompt_tokens, limit, max_tokens=max_tokens)
        return max_tokens if max_tokens is not None else limit - prompt_tokens

    async def generate(self, request: TokenRequest, shape: TextShape) -> AsyncGenerator[TextDelta, None]:
        """Deltas until one has a finish reason; `EngineFailed` when the engine gives an error instead."""
        sequence = _Sequence(self, request.sampling, shape)
        made = cast(AsyncGenerator[TokenDelta, None], self._engine.generate(request))  # the port: closing it aborts
        async with aclosing(made) as deltas:
            async for delta in deltas:
                text = sequence.take(delta)
                yield text
                if text.finish_reason is not None:
                    return
        raise EngineFailed("The engine ended an answer without saying why.")


class _Sequence:
    def __init__(self, generator: TextGenerator, sampling: SamplingParams, shape: TextShape) -> None:
        self._detokenizer = generator.tokenizer.detokenizer(skip_special_tokens=shape.skip_special_tokens)
        self._stops = StopStrings(shape.stop, include=shape.include_stop)
        self._shape = shape
        self._min_tokens = sampling.min_tokens
        self._made = 0
        self._cached = 0

    def take(self, delta: TokenDelta) -> TextDelta:
        if delta.finish_reason is FinishReason.ERROR:
            raise EngineFailed(delta.error or None)
        self._made += len(delta.token_ids)
        self._cached = max(self._cached, delta.cached_tokens)
        shown = self._shown(delta)
        return self._text_delta(shown, self._text(shown))

    def _shown(self, delta: TokenDelta) -> TokenDelta:
        """A token that stops an answer is not part of its text, unless the request wants it to be."""
        if delta.finish_reason is not FinishReason.STOP or self._shape.include_stop:
            return delta
        return replace(delta, token_ids=delta.token_ids[:-1], logprobs=delta.logprobs[:-1])

    def _text(self, delta: TokenDelta) -> str:
        text = self._detokenizer.feed(delta.token_ids)
        if delta.finish_reason is not None:
            text += self._detokenizer.flush()
        if self._made <= self._min_tokens:
            return self._stops.flush() + text  # too early to stop
        text = self._stops.feed(text)
        return text if delta.finish_reason is None else text + self._stops.flush()

    def _text_delta(self, delta: TokenDelta, text: str) -> TextDelta:
        return TextDelta(
            text=text,
            made=self._made,
            token_ids=delta.token_ids,
            logprobs=delta.logprobs,
            finish_reason=FinishReason.STOP if self._stops.found is not None else delta.finish_reason,
            cached_tokens=self._cached,
            transfer=delta.transfer,
        )
