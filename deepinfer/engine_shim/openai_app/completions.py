"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

import msgspec

from deepinfer.engine_shim.openai_app.choices import Choices
from deepinfer.engine_shim.openai_app.completion_request import CompletionRequest, Prompt
from deepinfer.engine_shim.openai_app.event_stream import stream
from deepinfer.engine_shim.openai_app.logprobs import completion_logprobs
from deepinfer.engine_shim.openai_app.responses import send_json
from deepinfer.engine_shim.openai_app.serving import Serving
from deepinfer.engine_shim.openai_app.usage import Usage
from deepinfer.engine_shim.openai_app.whole_answer import WholeChoice, closing, whole
from deepinfer.engine_shim.served_engine import Send
from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.text_generation import TextDelta
from deepinfer.engine_shim.token_engine import SamplingParams
from deepinfer.fleet.errors import InvalidRequest

_encode = msgspec.json.encode


async def completions(serving: Serving, body: bytes, send: Send) -> None:
    request = CompletionRequest.parse(body)
    serving.check_model(request.model)
    prompts = request.prompts()
    tokens = tuple([await _tokens(serving, prompt, request) for prompt in prompts])
    samplings = tuple(_sampling(serving, request, len(ids)) for ids in tokens)
    head = serving.head("cmpl", "text_completion")
    generated = min(request.generated_tokens, *map(len, tokens))
    transfer = serving.transfer(request.kv_transfer_params, len(prompts) * request.n)
    choices = Choices(head["id"], tokens, samplings, request.shape(), request.n, generated, transfer)
    tokenizer = serving.generator.tokenizer
    echoes = [_echo(tokenizer, prompt, request) for prompt in prompts for _ in range(request.n)]
    if request.stream:
        chunks = CompletionChunks(head, tokenizer, request, echoes)
        await stream(serving.generator, choices, chunks.of, send, chunks.usage)
    else:
        made, usage = await whole(serving.generator, choices)
        listed = [
            _choice(at, echo, choice, tokenizer) for at, (echo, choice) in enumerate(zip(echoes, made, strict=True))
        ]
        listed = listed if request.logprobs is not None else [choice | {"logprobs": None} for choice in listed]
        await send_json(send, head | {"choices": listed} | closing(made, usage))


async def _tokens(serving: Serving, prompt: Prompt, request: CompletionRequest) -> tuple[int, ...]:
    if isinstance(prompt, str):
        tokens = await serving.tokens(prompt, add_special_tokens=request.add_special_tokens)
        if not tokens:
            raise InvalidRequest("'prompt' is empty, and this model needs a token to begin with.", param="prompt")
        return tokens
    vocabulary = serving.generator.tokenizer.vocab_size
    if max(prompt) >= vocabulary:
        reason = f"'prompt': {max(prompt)} is not a token id of this model (0 to {vocabulary - 1})."
        raise InvalidRequest(reason, param="prompt")
    return prompt


def _sampling(serving: Serving, request: CompletionRequest, prompt_tokens: int) -> SamplingParams:
    """The default of 16 tokens is a default, not a wish: near the context's end it is less."""
    generator = serving.generator
    asked = request.max_tokens if "max_tokens" in request.model_fields_set else None
    fitting = generator.fitting(prompt_tokens, asked)
    return request.sampling(min(fitting, request.max_tokens), request.logprobs, generator.tokenizer.vocab_size)


def _echo(tokenizer: Tokenizer, prompt: Prompt, request: CompletionRequest) -> str:
    if not request.echo:
        return ""
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=False)


def _choice(number: int, echo: str, choice: WholeChoice, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "index": number,
        "text": echo + choice.text,
        "logprobs": completion_logprobs(tokenizer, choice.logprobs, 0),
        "finish_reason": choice.finish_reason,
    }


class CompletionChunks:
    """Encodes chunks. What is the same in all of them is encoded once."""

    def __init__(
        self, head: dict[str, Any], tokenizer: Tokenizer, request: CompletionRequest, echoes: list[str]
    ) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._logprobs = request.logprobs is not None
        self._include_usage = request.stream_options.include_usage
        self._before = b"data: " + _encode(head)[:-1] + b',"choices":[{"index":'
        self._after = b'}],"usage":null}\n\n' if self._include_usage else b"}]}\n\n"
        self._unsaid = echoes
        self._offsets = [0] * len(echoes)

    def of(self, number: int, delta: TextDelta) -> bytes:
        text, self._unsaid[number] = self._unsaid[number] + delta.text, ""
        if not text and not delta.logprobs and delta.finish_reason is None:
            return b""
        fields = (number, _encode(text), self._logprobs_of(number, delta), _encode(delta.finish_reason))
        return self._before + b'%d,"text":%b,"logprobs":%b,"finish_reason":%b' % fields + self._after

    def usage(self, usage: Usage) -> bytes:
        """The last chunk, if it was asked for."""
        if not self._include_usage:
            return b""
        return b"data: " + _encode(self._head | {"choices": [], "usage": usage.json()}) + b"\n\n"

    def _logprobs_of(self, number: int, delta: TextDelta) -> bytes:
        if not self._logprobs:
            return b"null"
        logprobs = completion_logprobs(self._tokenizer, delta.logprobs, self._offsets[number])
        self._offsets[number] += sum(map(len, logprobs["tokens"]))
        return _encode(logprobs)
