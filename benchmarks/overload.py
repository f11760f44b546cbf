"""`make bench-overload`: three times the load that the engines can answer, for a minute, over the real thing.

First the best rate is looked for, with as many clients as make it highest. Then requests come at three times that rate
whatever becomes of them. Said of it: the share of the best rate that was kept; how fast refusals came; what was neither
answered nor refused; and Retry-After, over what requests let in at that time really waited.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.fleet import Fleet

REPLICAS = 2
SEATS = 8
TOKEN_SECONDS = 0.02
TOKENS = (10, 50)
CLIENTS = (REPLICAS * SEATS, REPLICAS * SEATS * 5 // 4, REPLICAS * SEATS * 2)
SEARCH_SECONDS = 10.0
OVERLOAD_SECONDS = 60.0
SETTLED_SECONDS = 10.0
QUEUE_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one request; times in seconds since the load began. `status` 0: no answer came."""

    began: float
    ended: float
    status: int
    tokens: int = 0
    retry_after: float = 0.0
    queued: float = 0.0


class Load:
    """Requests to one gateway, and what became of them."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.seen: list[Outcome] = []
        self._http = http
        self._random = random.Random(1)
        self._count = 0
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    async def ask(self) -> None:
        self._count += 1
        tokens, began = self._random.randint(*TOKENS), self.now()
        message = {"role": "user", "content": f"request {self._count}"}
        body = {"model": "chat", "messages": [message], "max_tokens": tokens, "ignore_eos": True}
        try:
            answer = await self._http.post("/v1/chat/completions", json=body)
        except httpx.TransportError:
            self.seen.append(Outcome(began, self.now(), 0))
            return
        made = answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else 0
        waits = [float(answer.headers.get(name, 0)) for name in ("retry-after", "x-deepinfer-queue-seconds")]
        self.seen.append(Outcome(began, self.now(), answer.status_code, made, *waits))


async def by_clients(load: Load, clients: int, seconds: float) -> None:
    """Each asks again when it was answered."""

    async def client() -> None:
        while load.now() < seconds:
            await load.ask()

    await asyncio.gather(*(client() for _ in range(clients)))


async def by_the_clock(load: Load, per_second: float, seconds: float) -> None:
    """Whatever becomes of them."""
    async with asyncio.TaskGroup() as tasks:
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, number / per_second - load.now()))
            tasks.create_task(load.ask())


async def loaded(url: str, how: Callable[[Load], Awaitable[None]]) -> Load:
    many = httpx.Limits(max_connections=None, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=url, limits=many, timeout=120, trust_env=False) as http:
        load = Load(http)
        await how(load)
        return load


def goodput(seen: Sequence[Outcome], since: float, until: float) -> float:
    """Tokens a second of whole answers."""
    return sum(outcome.tokens for outcome in seen if since <= outcome.ended < until) / (until - since)


def best_rate(url: str) -> tuple[float, float]:
    """Tokens and requests a second."""
    best = (0.0, 0.0)
    for clients in CLIENTS:
        load = asyncio.run(loaded(url, lambda load, clients=clients: by_clients(load, clients, SEARCH_SECONDS)))  # type: ignore[misc]
        rate = goodput(load.seen, 1.0, SEARCH_SECONDS)
        requests = sum(1.0 <= outcome.ended < SEARCH_SECONDS for outcome in load.seen) / (SEARCH_SECONDS - 1.0)
        print(f"{clients:4} clients: {rate:7.1f} tokens/s, {requests:5.1f} requests/s", flush=True)
        best = max(best, (rate, requests))
    return best


def honesty(seen: Sequence[Outcome]) -> float:
    """Retry-After over the wait of the request that was let in last before each refusal: the median."""
    let_in = sorted((outcome.began, outcome.queued) for outcome in seen if outcome.status == 200)
    ratios = []
    for outcome in seen:
        before = [queued for began, queued in let_in if began <= outcome.began]
        if outcome.status == 429 and before and before[-1]:
            ratios.append(outcome.retry_after / before[-1])
    return statistics.median(ratios) if ratios else 0.0


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), serve=f"queue_seconds = {QUEUE_SECONDS}\n")
        with fleet.running():
            sized = {"seconds_per_output_token": TOKEN_SECONDS, "max_num_seqs": SEATS}
            fleet.deploy(model="chat", engine="sim", device="cpu", replicas=REPLICAS, engine_args=sized)
            fleet.wait_ready("chat")
            tokens, requests = best_rate(fleet.url)
            print(f"now {3 * requests:.0f} requests/s for {OVERLOAD_SECONDS:.0f} s", flush=True)
            load = asyncio.run(loaded(fleet.url, lambda load: by_the_clock(load, 3 * requests, OVERLOAD_SECONDS)))
    tell(load.seen, tokens)


def tell(seen: Sequence[Outcome], best: float) -> None:
    kept = goodput(seen, SETTLED_SECONDS, OVERLOAD_SECONDS) / best
    refused = sorted(outcome.ended - outcome.began for outcome in seen if outcome.status == 429)
    lost = sum(outcome.status not in (200, 429) for outcome in seen)
    p99 = refused[int(len(refused) * 0.99)] * 1000 if refused else 0.0
    print(f"{len(seen)} requests: {len(seen) - len(refused) - lost} answered, {len(refused)} refused, {lost} lost")
    print(
        f"bench-overload goodput_share={kept:.3f} refusal_p99_ms={p99:.1f} lost={lost} "
        f"retry_after_ratio={honesty(seen):.2f}"
    )


if __name__ == "__main__":
    main()
