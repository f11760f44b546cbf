"""Sessions as their users have them: four at a time, each question asked when the one before it is answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.fleet.until import RunEnded
from benchmarks.routing.engines import Gateway
from benchmarks.routing.sessions import Session

AT_ONCE = 4
MAX_TOKENS = 40
_ANSWER_SECONDS = 120.0

Message = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """One question and its answer. Times in seconds."""

    messages: tuple[Message, ...]
    answer: str
    prompt_tokens: int
    cached_tokens: int
    asked_at: float  # since the run began
    first_token: float  # since it was asked


@dataclass(frozen=True)
class Conversations:
    """All turns of one run, in the order in which they were asked, and how long it took."""

    turns: tuple[Turn, ...]
    seconds: float


@dataclass(frozen=True)
class Load:
    """Where, for which model, and what makes this run's session ids its own: gateways remember the ones they saw."""

    gateway: Gateway
    model: str
    run: str

    async def converse(self, sessions: Sequence[Session]) -> Conversations:
        """Raises `RunEnded` for an answer that is not whole."""
        coming, turns, began = iter(sessions), list[Turn](), time.perf_counter()
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=_ANSWER_SECONDS, trust_env=False) as http:
            users = (self._user(http, coming, began) for _ in range(AT_ONCE))
            for told in await asyncio.gather(*users):
                turns += told
        ended = time.perf_counter() - began
        return Conversations(tuple(sorted(turns, key=lambda turn: turn.asked_at)), ended)

    async def _user(self, http: httpx.AsyncClient, coming: Iterator[Session], began: float) -> list[Turn]:
        turns = []
        for session in coming:
            messages = [{"role": "system", "content": session.system}]
            for question in session.questions:
                messages.append({"role": "user", "content": question})
                turns.append(turn := await self._asked(http, session, messages, began))
                messages.append({"role": "assistant", "content": turn.answer})
            if self.gateway.end_path:
                ended = await http.post(self.gateway.end_path, params={"session_id": self._id(session)})
                ended.raise_for_status()
        return turns

    def _id(self, session: Session) -> str:
        return f"{self.run}-{session.number}"

    async def _asked(self, http: httpx.AsyncClient, session: Session, messages: list[Message], began: float) -> Turn:
        body = {
            "model": self.model,
            "messages": messages,
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"x-session-id": self._id(session)}
        pieces, usage, first, asked = list[str](), dict[str, Any](), 0.0, time.perf_counter()
        async with http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status_code != 200:
                raise RunEnded(f"{self.gateway.url} answered {answer.status_code}: {(await answer.aread())[:500]!r}")
            async for event in _events(answer):
                if text := _text(event):
                    first = first or time.perf_counter() - asked
                    pieces.append(text)
                usage = event.get("usage") or usage
        if not usage or not first:
            raise RunEnded(f"{self.gateway.url} ended an answer without a token or without usage: {''.join(pieces)!r}.")
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Turn(tuple(messages), "".join(pieces), usage["prompt_tokens"], cached, asked - began, first)


async def _events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    async for line in answer.aiter_lines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RunEnded(f"An answer ended with an error: {event['error']}.")
            yield event


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    return (choices[0]["delta"].get("content") or "") if choices else ""
