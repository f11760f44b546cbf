"""Generate on vLLM: a typed request by token ids or text, its deltas as values."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from deepinfer.engine_shim.engines.vllm.imports import Vllm
from deepinfer.engine_shim.token_engine import ContextTooLong, FinishReason, SamplingParams, TokenLogprob
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest
from deepinfer.fleet.errors import InvalidRequest

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class TypedRequests:
    """Called with a request; closing the answer's iterator aborts it in the engine."""

    def __init__(self, vllm: Vllm, engine: Any) -> None:
        self._vllm = vllm
        self._engine = engine

    async def __call__(self, request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
        """Raises `InvalidRequest` before the first delta."""
        prompt = await self._token_ids(request.prompt)
        try:
            sampling = self._sampling(request.sampling, len(prompt))
            outputs = self._engine.generate({"prompt_token_ids": prompt}, sampling, request.request_id)
            async with aclosing(outputs) as made:
                async for output in made:
                    yield _delta(output)
        except self._vllm.refusals as error:
            raise InvalidRequest(str(error)) from error

    async def _token_ids(self, prompt: str | tuple[int, ...]) -> list[int]:
        ids = list(await self._encoded(prompt) if isinstance(prompt, str) else prompt)
        longest = self._engine.model_config.max_model_len
        if not 0 < len(ids) < longest:
            raise ContextTooLong(len(ids), longest)
        return ids

    async def _encoded(self, text: str) -> list[int]:
        tokenizer = self._engine.get_tokenizer()
        if hasattr(tokenizer, "__await__"):  # a coroutine up to 0.12
            tokenizer = await tokenizer
        ids: list[int] = tokenizer.encode(text)
        return ids

    def _sampling(self, wanted: SamplingParams, prompt_tokens: int) -> Any:
        longest = self._engine.model_config.max_model_len
        if prompt_tokens + wanted.max_tokens > longest:
            raise ContextTooLong(prompt_tokens, longest, max_tokens=wanted.max_tokens)
        return self._vllm["SamplingParams"](
            max_tokens=wanted.max_tokens or longest - prompt_tokens,
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            top_k=wanted.top_k,
            min_p=wanted.min_p,
            presence_penalty=wanted.presence_penalty,
            frequency_penalty=wanted.frequency_penalty,
            repetition_penalty=wanted.repetition_penalty,
            seed=wanted.seed,
            stop_token_ids=list(wanted.stop_token_ids),
            ignore_eos=wanted.ignore_eos,
            min_tokens=wanted.min_tokens,
            logprobs=wanted.logprobs,
            logit_bias=dict(wanted.logit_bias) or None,
            output_kind=self._vllm["RequestOutputKind"].DELTA,
        )


def _delta(output: Any) -> GenerateDelta:
    choice = output.outputs[0]
    reason = choice.finish_reason
    return GenerateDelta(
        token_ids=tuple(choice.token_ids),
        text=choice.text,
        logprobs=tuple(map(_logprob, choice.token_ids, choice.logprobs or ())),
        finish_reason=None if reason is None else _REASONS.get(reason, FinishReason.ERROR),
        cached_tokens=output.num_cached_tokens or 0,
        error="" if reason in (None, *_REASONS) else f"The engine ended the answer: {reason}.",
    )


def _logprob(token_id: int, alternatives: Mapping[int, Any]) -> TokenLogprob:
    """vLLM gives the chosen token and the likeliest ones in one table, each with its rank."""
    top = sorted((entry.rank, token, entry.logprob) for token, entry in alternatives.items())
    wanted = len(top) if alternatives[token_id].rank <= len(top) else len(top) - 1
    return TokenLogprob(
        token_id, alternatives[token_id].logprob, tuple((token, logprob) for _, token, logprob in top[:wanted])
    )
