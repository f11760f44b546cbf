"""Generate on engines that only make tokens: text is tokenized here, and made of what they answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from deepinfer.engine_shim.text_generation import TextGenerator, TextShape
from deepinfer.engine_shim.token_engine import TokenRequest
from deepinfer.engine_shim.wire import GenerateDelta, GenerateRequest


async def typed_deltas(generator: TextGenerator, request: GenerateRequest) -> AsyncGenerator[GenerateDelta, None]:
    prompt = request.prompt
    if isinstance(prompt, str):
        prompt = tuple(generator.tokenizer.encode(prompt, add_special_tokens=True))
    sampling = replace(request.sampling, max_tokens=generator.fitting(len(prompt), request.sampling.max_tokens or None))
    async with aclosing(generator.generate(TokenRequest(request.request_id, prompt, sampling), TextShape())) as deltas:
        async for delta in deltas:
            yield GenerateDelta(
                token_ids=delta.token_ids,
                text=delta.text,
                logprobs=delta.logprobs,
                finish_reason=delta.finish_reason,
                cached_tokens=delta.cached_tokens,
            )
