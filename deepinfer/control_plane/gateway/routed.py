"""What of a request its replica is chosen by."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec.structs import replace

from deepinfer.control_plane.gateway.body import ModelRequest
from deepinfer.control_plane.gateway.work import Experience
from deepinfer.control_plane.prompts.asked import prompt_of
from deepinfer.control_plane.prompts.prompt import Prompt
from deepinfer.control_plane.prompts.reader import PromptReader
from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.prompt_reading import PromptReading
from deepinfer.engine_shim.kv_chain import TOKEN_BYTES

_BEGINS: Final = (b'"messages"', b'"prompt"', b'"input"')
_MOST_TEXT: Final = 128 << 10
"""Of which a guess is made what was seen before."""
_UNFORESEEN: Final = "what tokens this prompt will be cannot be foreseen"


def routed_request(request: ModelRequest, experience: Experience, request_id: bytes) -> RoutedRequest:
    """Without its prompt's tokens: their number is judged by the body's size."""
    body, wishes = request.call.body, request.wishes
    return RoutedRequest(
        model=request.model,
        id=request_id,
        prompt_tokens=int(experience.prompt_tokens(len(body))),
        no_tokens=_UNFORESEEN,
        salt=wishes.salt if isinstance(wishes.salt, str) else "",
        text=_text(body),
        session=request.session,
        answer_tokens=experience.answer(wishes.most_tokens),
        streams=wishes.stream is True,
    )


class UnreadPrompt:
    """A prompt that takes long to read."""

    def __init__(self, reader: PromptReader, prompt: Prompt) -> None:
        self._reader = reader
        self._prompt = prompt

    async def read(self, routed: RoutedRequest) -> RoutedRequest:
        """Meanwhile everything else goes on."""
        return _with_tokens(routed, await asyncio.to_thread(self._reader.read, self._prompt))


def with_tokens(
    routed: RoutedRequest, request: ModelRequest, reading: PromptReading | None
) -> RoutedRequest | UnreadPrompt:
    """The same with its tokens, where a choice depends on them and they can be foreseen."""
    if reading is None:
        return routed
    reader = reading.reader
    if reader is None:
        return replace(routed, no_tokens=reading.why_not)
    prompt = None if request.said is None else prompt_of(request.call.path, request.said)
    if prompt is None:
        return routed
    tokens = reader.known(prompt)
    return UnreadPrompt(reader, prompt) if tokens is None else _with_tokens(routed, tokens)


def _with_tokens(routed: RoutedRequest, tokens: bytes) -> RoutedRequest:
    if not tokens:
        return routed
    return replace(routed, tokens=tokens, prompt_tokens=len(tokens) // TOKEN_BYTES, no_tokens="")


def _text(body: bytes) -> bytes:
    """From where the prompt begins in a JSON body: what stands before it differs between equal prompts."""
    at = max(body.find(begin, 0, 4096) for begin in _BEGINS)
    return body[max(at, 0) : _MOST_TEXT]
