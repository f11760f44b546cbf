"""All deltas of a request put together, for answers that are not streamed."""

from __future__ import annotations

from dataclasses import dataclass, field

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


async def whole(generator: TextGenerator, choices: Choices) -> tuple[list[WholeChoice], Usage]:
    made = [WholeChoice() for _ in range(len(choices))]
    usage = Usage([len(prompt) for prompt in choices.prompts], choices.n)

    async def take(number: int, delta: TextDelta) -> None:
        usage.add(number, delta)
        choice = made[number]
        choice.text += delta.text
        choice.logprobs += delta.logprobs
        choice.finish_reason = delta.finish_reason

    await choices.run(generator, take)
    return made, usage
