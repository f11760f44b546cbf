"""The shim's OpenAI application for engines that only make tokens: a plain ASGI function and a table of paths.

Endpoints raise typed errors; here they become answers. Nothing is kept between two requests.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from deepinfer.engine_shim.openai_app.chat import chat_completions
from deepinfer.engine_shim.openai_app.completions import completions
from deepinfer.engine_shim.openai_app.errors import UnknownPath, WrongMethod
from deepinfer.engine_shim.openai_app.responses import send_error, send_json
from deepinfer.engine_shim.openai_app.serving import Serving
from deepinfer.engine_shim.openai_app.tokenization import detokenize, tokenize
from deepinfer.engine_shim.served_engine import AsgiApp, Message, Receive, Scope, Send
from deepinfer.engine_shim.text_generation import TextGenerator
from deepinfer.fleet.errors import DeepinferError

log = logging.getLogger(__name__)

Endpoint = Callable[[Serving, bytes, Send], Awaitable[None]]


async def _models(serving: Serving, body: bytes, send: Send) -> None:
    limit = serving.generator.info.max_model_len
    fields = {"object": "model", "created": 0, "owned_by": "deepinfer", "max_model_len": limit}
    await send_json(send, {"object": "list", "data": [{"id": name} | fields for name in serving.names]})


_ENDPOINTS: dict[str, tuple[str, Endpoint]] = {
    "/v1/chat/completions": ("POST", chat_completions),
    "/v1/completions": ("POST", completions),
    "/v1/models": ("GET", _models),
    "/tokenize": ("POST", tokenize),
    "/detokenize": ("POST", detokenize),
}


def openai_app(generator: TextGenerator, names: tuple[str, ...]) -> AsgiApp:
    """`names` are what requests may call the model; answers carry the first."""
    serving = Serving(generator, names)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no websockets, and nothing to start up
        response = _Response(send)
        try:
            endpoint = _endpoint(scope["method"], scope["path"])
            await endpoint(serving, await _body(receive), response.send)
        except Exception as error:
            if not isinstance(error, DeepinferError):
                log.exception("%s %s failed", scope["method"], scope["path"])
            if response.started:
                raise  # the head is out: only breaking the answer tells that it is not whole
            await send_error(send, error)

    return app


class _Response:
    """Knows whether an answer has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def send(self, message: Message) -> None:
        self.started = True
        await self._send(message)


def _endpoint(method: str, path: str) -> Endpoint:
    if path not in _ENDPOINTS:
        raise UnknownPath(f"This engine does not serve {path}; it serves {', '.join(_ENDPOINTS)}.")
    expected, endpoint = _ENDPOINTS[path]
    if method != expected:
        raise WrongMethod(f"{path} takes {expected}, not {method}.")
    return endpoint


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)
