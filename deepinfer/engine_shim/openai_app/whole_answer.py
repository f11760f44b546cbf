"""All deltas of a request put together, for answers that are not streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepinfer.engine_shim.openai_app.choices import Choices
from deepinfer.engine_shim.openai_app.usage import Usage
from deepinfer.engine_shim.text_generation import TextDelta, TextGenerator
from deepinfer.engine_shim.token_engine import FinishReason, TokenLogprob


@dataclass
class WholeChoice:
    """One choice, as far as it has come."""

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    transfer: Mapping[str, Any] | None = None


async def whole(generator: TextGenerator, choices: Choices) -> tuple[list[WholeChoice], Usage]:
    made = [WholeChoice() for _ in range(len(choices))]
    usage = Usage([len(prompt) for prompt in choices.prompts], choices.n)

    async def take(number: int, delta: TextDelta) -> None:
        usage.add(number, delta)
        choice = made[number]
        choice.text += delta.text
        choice.logprobs += delta.logprobs
        choice.finish_reason = delta.finish_reason
        choice.transfer = delta.transfer

    await choices.run(generator, take)
    return made, usage


def closing(made: list[WholeChoice], usage: Usage) -> dict[str, Any]:
    """The fields every whole answer ends with. What is to be transferred is told under vLLM's name for it."""
    transfer = {"kv_transfer_params": made[0].transfer} if made[0].transfer is not None else {}
    return {"usage": usage.json()} | transfer
