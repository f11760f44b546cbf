"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from pydantic import Field

from deepinfer.engine_shim.openai_app.chat_request import ChatRequest
from deepinfer.engine_shim.openai_app.generation_request import RequestBody, TokenId
from deepinfer.engine_shim.openai_app.responses import send_json
from deepinfer.engine_shim.openai_app.serving import Serving
from deepinfer.engine_shim.served_engine import Send


class TokenizeRequest(RequestBody):
    prompt: str | None = None
    add_special_tokens: bool = True


class DetokenizeRequest(RequestBody):
    tokens: list[TokenId] = Field(max_length=10_000_000)


async def tokenize(serving: Serving, body: bytes, send: Send) -> None:
    """A prompt, or the messages of a chat."""
    request = TokenizeRequest.parse(body)
    serving.check_model(request.model)
    if request.prompt is None:
        chat = ChatRequest.parse(body)
        tokens = await serving.chat_tokens(chat.prompt(), add_special_tokens=chat.add_special_tokens)
    else:
        tokens = await serving.tokens(request.prompt, add_special_tokens=request.add_special_tokens)
    limit = serving.generator.info.max_model_len
    await send_json(send, {"count": len(tokens), "max_model_len": limit, "tokens": tokens})


async def detokenize(serving: Serving, body: bytes, send: Send) -> None:
    request = DetokenizeRequest.parse(body)
    serving.check_model(request.model)
    await send_json(send, {"prompt": serving.generator.tokenizer.decode(request.tokens, skip_special_tokens=False)})
