"""Gateways tell each other over a real etcd what limited keys have used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deepinfer.control_plane.limits.ledger import Ledger
from deepinfer.control_plane.limits.usage_sharing import share_usage
from deepinfer.fleet import keys
from deepinfer.fleet.api_key import KeyLimits
from deepinfer.fleet.store import EtcdStore
from tests.gateway_parts import until

LIMITS = KeyLimits(requests_per_minute=100, concurrent_streams=10)


@asynccontextmanager
async def gateway(store: EtcdStore, name: str) -> AsyncIterator[Ledger]:
    ledger = Ledger()
    sharing = asyncio.create_task(share_usage(store, ledger, name))
    try:
        yield ledger
    finally:
        sharing.cancel()
        await asyncio.wait({sharing})


def use(ledger: Ledger, requests: int) -> None:
    now = asyncio.get_running_loop().time()
    usage = ledger.usage("k", LIMITS, now)
    for _ in range(requests):
        usage.begin(5, now)
    ledger.changed.set()


def left(ledger: Ledger) -> int:
    now = asyncio.get_running_loop().time()
    usage = ledger.usage("k", LIMITS, now)
    return int(dict(usage.headers(now))[b"x-ratelimit-remaining-requests"])


async def test_what_one_lets_in_counts_at_the_others_and_ends_with_it(store: EtcdStore) -> None:
    async with gateway(store, "one") as one:
        async with gateway(store, "two") as two:
            assert left(one) == 100
            use(two, 9)
            await until(lambda: left(one) <= 91)
            assert not (await store.read(keys.usage("one"))).entries or left(two) == 91
            use(one, 1)
            async with gateway(store, "late") as late:
                await until(lambda: late.known_gateways() == {"one", "two"})
        await until(lambda: one.known_gateways() == frozenset())  # its lease ended with it
        use(one, 9)  # and what ran there runs no more
