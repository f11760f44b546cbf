"""The tokens a text was made of, found out from an engine by /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from deepinfer.control_plane.gateway.sent_stream import NotExact

Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""A path and a JSON body: the engine's JSON answer."""

_TAIL_TOKENS: Final = 16
"""Of the prompt, that are looked at together with what follows."""
_CLEANED: Final = (" .", " ?", " !", " ,", " n't", " 'm", " 's", " 've", " 're")
"""What many tokenizers write without the space when they decode, other than when they stream."""


class Tokenizing:
    """By one engine. `max_model_len` is known once it was asked."""

    def __init__(self, ask: Ask, model: object) -> None:
        self.max_model_len = 0
        self._ask = ask
        self._model = model

    async def of(self, question: dict[str, Any]) -> list[int]:
        answer = await self._ask("/tokenize", question)
        tokens, length = answer.get("tokens"), answer.get("max_model_len")
        if not isinstance(tokens, list) or not isinstance(length, int):
            raise NotExact("the other replica cannot say what its tokens are")
        self.max_model_len = length
        return tokens

    async def of_text(self, text: str) -> list[int]:
        return await self.of({"model": self._model, "prompt": text, "add_special_tokens": False})

    async def text(self, tokens: list[int]) -> str:
        return str((await self._ask("/detokenize", {"model": self._model, "tokens": tokens})).get("prompt"))


async def exact_tokens(tokens: Tokenizing, prompt: list[int], text: str) -> list[int]:
    """Those of an answer's text. `NotExact` when, behind the prompt, none say just that.

    Some tokenizers put a space before every text; what they make of a text behind a line's end has none.
    """
    tail = prompt[-_TAIL_TOKENS:]
    before = await tokens.text(tail)
    for begin in ("", "\n"):
        found = await tokens.of_text(begin + text)
        if begin:
            beginning = await tokens.of_text(begin)
            if found[: len(beginning)] != beginning:
                break
            found = found[len(beginning) :]
        if await tokens.text(tail + found) in (before + text, _cleaned(before + text)):
            return found
    raise NotExact("its text cannot be turned back into the tokens it was made of")


def _cleaned(text: str) -> str:
    text = text.replace(" ' ", "'")
    for spaced in _CLEANED:
        text = text.replace(spaced, spaced[1:])
    return text
