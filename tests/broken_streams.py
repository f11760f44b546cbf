"""Clients whose answers are far from done when something happens, and what became of each."""

from __future__ import annotations

import threading

import httpx
from openai import OpenAIError

from tests.fleet import Fleet, eventually

STREAMS = 16


class BrokenStreams:
    """All of them have begun once it is made."""

    def __init__(self, fleet: Fleet, model: str, max_tokens: int) -> None:
        self._fleet = fleet
        self._model = model
        self._max_tokens = max_tokens
        self.begun: list[bool] = []
        self.ends: list[str] = []
        for _ in range(STREAMS):
            threading.Thread(target=self._run, daemon=True).start()
        eventually(lambda: len(self.begun) == STREAMS or self.ends, 60)
        assert not self.ends, self.ends

    def all_ended(self, seconds: float) -> list[str]:
        """An error's name and words, or "whole", or "cut without a word"."""
        eventually(lambda: len(self.ends) == STREAMS, seconds)
        return self.ends

    def _run(self) -> None:
        finish, begun = None, False
        try:
            stream = self._fleet.openai.completions.create(
                model=self._model,
                prompt="hello",
                max_tokens=self._max_tokens,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            for chunk in stream:
                if not begun:
                    self.begun.append(begun := True)
                finish = chunk.choices[0].finish_reason or finish
            self.ends.append("whole" if finish else "cut without a word")
        except (OpenAIError, httpx.TransportError) as error:
            self.ends.append(f"{type(error).__name__}: {error}")
