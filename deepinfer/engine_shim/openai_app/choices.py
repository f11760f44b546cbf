"""Runs all sequences of one request side by side: one for each choice of each prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from deepinfer.engine_shim.text_generation import TextDelta, TextGenerator, TextShape
from deepinfer.engine_shim.token_engine import SamplingParams, TokenRequest

Take = Callable[[int, TextDelta], Awaitable[None]]
"""Gets every delta, with the number of its choice."""


@dataclass(frozen=True, slots=True)
class Choices:
    """A request, tokenized and ready to run."""

    id: str
    prompts: tuple[tuple[int, ...], ...]
    samplings: tuple[SamplingParams, ...]  # one for each prompt
    shape: TextShape
    n: int
    generated: int = 0  # the last tokens of the prompt that are of an answer
    transfer: Mapping[str, Any] | None = None  # of the one prompt's KV

    def __len__(self) -> int:
        return len(self.prompts) * self.n

    def requests(self) -> Iterator[TokenRequest]:
        """Choices of one prompt differ in their seed, if the request has one."""
        for at, (prompt, sampling) in enumerate(zip(self.prompts, self.samplings, strict=True)):
            for choice in range(self.n):
                seed = None if sampling.seed is None else sampling.seed + choice
                identity = f"{self.id}-{at * self.n + choice}"
                yield TokenRequest(identity, prompt, replace(sampling, seed=seed), self.generated, self.transfer)

    async def run(self, generator: TextGenerator, take: Take) -> None:
        """Until all have ended. The first failure ends all; a cancelled `run` aborts them in the engine."""
        runs = [generator.generate(request, self.shape) for request in self.requests()]
        if len(runs) == 1:
            await _each(runs[0], 0, take)
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                for number, deltas in enumerate(runs):
                    tasks.create_task(_each(deltas, number, take))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None


async def _each(deltas: AsyncGenerator[TextDelta, None], number: int, take: Take) -> None:
    async with aclosing(deltas):
        async for delta in deltas:
            await take(number, delta)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
