"""The most that can be cached: one cache that never evicts, and that holds a prompt as soon as it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.fleet.until import RunEnded
from benchmarks.routing.conversing import Turn
from deepinfer.engine_shim.kv_chain import chain, token_bytes
from deepinfer.engine_shim.text.chat_template import ChatPrompt
from deepinfer.engine_shim.text.model_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class Tokens:
    """Of one turn."""

    prompt: Sequence[int]
    answer: Sequence[int]


class TurnTokens:
    """What turns are in the model's own tokens."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = ModelTokenizer(folder)

    def of(self, turn: Turn) -> Tokens:
        """Raises `RunEnded` where the engine counted others."""
        assert self._tokenizer.chat_template is not None
        text = self._tokenizer.chat_template.render(ChatPrompt(turn.messages))
        prompt = self._tokenizer.encode(text, add_special_tokens=False)
        if len(prompt) != turn.prompt_tokens:
            raise RunEnded(f"A prompt has {len(prompt)} tokens here and {turn.prompt_tokens} in the engine.")
        return Tokens(prompt, self._tokenizer.encode(turn.answer, add_special_tokens=False))


def cached_share(turns: Iterable[Tokens], block_size: int) -> float:
    """Of all prompt tokens. Only full blocks are cached, and a prompt's last token is always computed."""
    held, prompts, cached = set[int](), 0, 0
    for turn in turns:
        prompts += len(turn.prompt)
        for name in chain(token_bytes(turn.prompt[:-1]), block_size):
            if name not in held:
                break
            cached += block_size
        held.update(chain(token_bytes([*turn.prompt, *turn.answer]), block_size))
    return cached / prompts
