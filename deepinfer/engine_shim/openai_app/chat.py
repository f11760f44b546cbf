"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec

from deepinfer.engine_shim.openai_app.chat_request import ChatRequest
from deepinfer.engine_shim.openai_app.choices import Choices
from deepinfer.engine_shim.openai_app.event_stream import stream
from deepinfer.engine_shim.openai_app.logprobs import chat_logprobs
from deepinfer.engine_shim.openai_app.responses import send_json
from deepinfer.engine_shim.openai_app.serving import Serving
from deepinfer.engine_shim.openai_app.usage import Usage
from deepinfer.engine_shim.openai_app.whole_answer import WholeChoice, closing, whole
from deepinfer.engine_shim.served_engine import Send
from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.text_generation import TextDelta

_encode = msgspec.json.encode


async def chat_completions(serving: Serving, body: bytes, send: Send) -> None:
    request = ChatRequest.parse(body)
    serving.check_model(request.model)
    generator = serving.generator
    tokens = await serving.chat_tokens(request.prompt(), add_special_tokens=request.add_special_tokens)
    fitting = generator.fitting(len(tokens), request.max_tokens, param="messages")
    transfer = serving.transfer(request.kv_transfer_params, request.n)
    sampling = request.sampling(fitting, request.wanted_logprobs(), generator.tokenizer.vocab_size)
    if request.stream:
        head = serving.head("chatcmpl", "chat.completion.chunk")
        choices = Choices(head["id"], (tokens,), (sampling,), request.shape(), request.n, transfer=transfer)
        chunks = ChatChunks(head, generator.tokenizer, request)
        await stream(generator, choices, chunks.of, send, chunks.usage)
    else:
        head = serving.head("chatcmpl", "chat.completion")
        choices = Choices(head["id"], (tokens,), (sampling,), request.shape(), request.n, transfer=transfer)
        made, usage = await whole(generator, choices)
        listed = [_choice(number, choice, request, generator.tokenizer) for number, choice in enumerate(made)]
        await send_json(send, head | {"choices": listed} | closing(made, usage))


def _choice(number: int, choice: WholeChoice, request: ChatRequest, tokenizer: Tokenizer) -> dict[str, Any]:
    content = chat_logprobs(tokenizer, choice.logprobs)
    return {
        "index": number,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": {"content": content, "refusal": None} if request.logprobs else None,
        "finish_reason": choice.finish_reason,
    }


class ChatChunks:
    """Encodes chunks. What is the same in all of them is encoded once."""

    def __init__(self, head: dict[str, Any], tokenizer: Tokenizer, request: ChatRequest) -> None:
        self._head = head
        self._tokenizer = tokenizer
        self._logprobs = request.logprobs
        self._include_usage = request.stream_options.include_usage
        self._before = b"data: " + _encode(head)[:-1] + b',"choices":[{"index":'
        self._after = b'}],"usage":null}\n\n' if self._include_usage else b"}]}\n\n"
        self._begun: set[int] = set()

    def of(self, number: int, delta: TextDelta) -> bytes:
        """The role before anything else, the finish reason in a chunk of its own."""
        events = b""
        if number not in self._begun:
            self._begun.add(number)
            events = self._chunk(number, b'{"role":"assistant","content":""}', b"null", b"null")
        if delta.text or delta.logprobs:
            logprobs = b"null"
            if self._logprobs:
                logprobs = b'{"content":%b,"refusal":null}' % _encode(chat_logprobs(self._tokenizer, delta.logprobs))
            events += self._chunk(number, b'{"content":%b}' % _encode(delta.text), logprobs, b"null")
        if delta.finish_reason is not None:
            events += self._chunk(number, b"{}", b"null", _encode(delta.finish_reason))
        return events

    def usage(self, usage: Usage) -> bytes:
        """The last chunk, if it was asked for."""
        if not self._include_usage:
            return b""
        return b"data: " + _encode(self._head | {"choices": [], "usage": usage.json()}) + b"\n\n"

    def _chunk(self, number: int, delta: bytes, logprobs: bytes, finish: bytes) -> bytes:
        choice = b'%d,"delta":%b,"logprobs":%b,"finish_reason":%b' % (number, delta, logprobs, finish)
        return self._before + choice + self._after
