"""Server-sent events over ASGI, started by the first one: until then an error is still a clean JSON answer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from deepinfer.engine_shim.openai_app.choices import Choices
from deepinfer.engine_shim.openai_app.errors import body_of
from deepinfer.engine_shim.openai_app.usage import Usage
from deepinfer.engine_shim.served_engine import Send
from deepinfer.engine_shim.text_generation import TextDelta, TextGenerator

log = logging.getLogger(__name__)

DONE: Final = b"data: [DONE]\n\n"
_HEADERS: Final = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]

Encode = Callable[[int, TextDelta], bytes]
"""The events of one delta of one choice; empty when it has nothing to tell."""


class EventStream:
    """One streamed answer."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def write(self, events: bytes) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        await self.write(events)
        await self._send({"type": "http.response.body", "body": b""})


async def stream(
    generator: TextGenerator,
    choices: Choices,
    encode: Encode,
    send: Send,
    last: Callable[[Usage], bytes],
) -> None:
    """Events as they come. A failure after the first is an event, and no [DONE] follows: the answer is not whole."""
    events = EventStream(send)
    usage = Usage([len(prompt) for prompt in choices.prompts], choices.n)

    async def take(number: int, delta: TextDelta) -> None:
        usage.add(number, delta)
        data = encode(number, delta)
        if data:
            await events.write(data)

    try:
        await choices.run(generator, take)
    except Exception as error:  # whatever it is, the client must hear of it
        if not events.started:
            raise
        log.warning("an answer broke off: %r", error)
        await events.end(b"data: " + body_of(error) + b"\n\n")
    else:
        await events.end(last(usage) + DONE)
