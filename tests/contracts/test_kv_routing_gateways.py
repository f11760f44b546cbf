"""Several gateways over the same engines: what one sends the others see in the engines' own words, and nowhere else."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.contracts.test_kv_routing import kv_gateway
from tests.gateway_parts import until


@asynccontextmanager
async def gateway_process(endpoints: list[str]) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A second gateway, and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.gateway_process", *endpoints, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_gateways_see_each_others_work_and_one_that_is_killed_leaves_none(
    tmp_path: Path,
) -> None:
    slow: dict[str, Any] = {"prefill_tokens_per_second": 1000, "seconds_per_output_token": 0.03}
    async with kv_gateway(tmp_path, **slow) as (gateway, sims):
        first, second = gateway.replicas.ready("chat")
        async with gateway_process([sim.endpoint for sim in sims]) as (process, url), httpx.AsyncClient() as http:

            async def burst(url: str, number: int, max_tokens: int) -> httpx.Response:
                messages = [{"role": "user", "content": f"{number} unlike all others, for once. " * 12}]
                body = {"model": "chat", "messages": messages, "max_tokens": max_tokens, "ignore_eos": True}
                explained = {"x-deepinfer-explain": "1"}
                return await http.post(f"{url}/v1/chat/completions", json=body, headers=explained, timeout=60)

            async with asyncio.TaskGroup() as tasks:
                answers = [tasks.create_task(burst((url, gateway.url)[n % 2], n, 8)) for n in range(16)]
            shares = Counter(answer.result().headers["x-deepinfer-replica"] for answer in answers)
            assert min(shares.values()) >= 5, shares

            endless = [asyncio.create_task(burst(url, n, 2000)) for n in range(16, 24)]
            await until(lambda: first.outlook.there >= 3 and second.outlook.there >= 3)
            assert not first.in_flight and not second.in_flight
            process.kill()
            await process.wait()
            await asyncio.gather(*endless, return_exceptions=True)
            await until(lambda: not first.outlook.there and not second.outlook.there, 2.0)
            now = first.now()
            assert first.outlook.queue_seconds(now) == second.outlook.queue_seconds(now) == 0.0
            assert first.load.kv_blocks_used == second.load.kv_blocks_used == 0
