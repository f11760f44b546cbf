"""A trace, asked of a fleet over HTTP in real time. A token is a word, so both tokenize alike."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.fleet.until import RunEnded
from benchmarks.gateway.dynamo import WORDS
from benchmarks.routing_sim.trace import Session, Tokens, Trace

MODEL = "sim"
_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Heard:
    """Of one request; times in seconds."""

    ttft: float
    ended: float  # since the trace began
    tokens: int
    prompt_tokens: int
    cached_tokens: int


async def replay_over_http(url: str, trace: Trace) -> list[Heard]:
    """Raises `RunEnded` where one is not answered."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE_SECONDS, limits=limits, trust_env=False) as http:
        began, heard = time.monotonic(), list[Heard]()
        try:
            async with asyncio.TaskGroup() as tasks:
                for session in trace.sessions:
                    tasks.create_task(_session(http, session, began, heard))
        except ExceptionGroup as group:
            raise RunEnded(f"A request was not answered: {group.exceptions[0]}") from group
        return heard


async def _session(http: httpx.AsyncClient, session: Session, began: float, heard: list[Heard]) -> None:
    """What it says next does not depend on the answers: they are other words in either fleet."""
    await asyncio.sleep(session.arrival)
    said: Tokens = ()
    for number, turn in enumerate(session.turns):
        if number:
            await asyncio.sleep(turn.pause)
        said += turn.new
        heard.append(await asked(http, said, turn.max_tokens, began))


async def asked(http: httpx.AsyncClient, prompt: Tokens, max_tokens: int, began: float) -> Heard:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": " ".join(f"w{token % WORDS}" for token in prompt)}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked_at, ttft, usage = time.monotonic(), 0.0, dict[str, Any]()
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            usage = event.get("usage") or usage
            if not ttft and event["choices"] and event["choices"][0]["delta"].get("content"):
                ttft = time.monotonic() - asked_at
    return Heard(
        ttft=ttft,
        ended=time.monotonic() - began,
        tokens=usage["completion_tokens"],
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )
