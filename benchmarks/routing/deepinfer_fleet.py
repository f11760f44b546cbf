"""deepinfer with a deployment of two native replicas; from policy to policy only its `routing` changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from benchmarks.fleet.until import RunEnded
from benchmarks.routing.engines import (
    DTYPE,
    ENVIRONMENT,
    FLAGS,
    FLUSH,
    MAX_MODEL_LEN,
    MODEL,
    REPLICAS,
    START_SECONDS,
    Gateway,
    pin,
)
from deepinfer.engine_shim.client import EngineCall, EngineClient
from deepinfer.engine_shim.kv_mirror import KeySet, KvMirror, mirrored
from tests.fleet import Fleet

POLICIES = ("kv", "session", "least-loaded", "round-robin", "random")
_EMPTY_SECONDS = 30.0
_NOTICE_SECONDS = 0.5
"""A shim tells each of its watchers in its own time: the gateway may hear a little later than we do."""
_JSON = ((b"content-type", b"application/json"),)
_EMPTYING = (
    EngineCall("POST", "/reset_prefix_cache"),
    EngineCall("POST", "/v1/completions", headers=_JSON, body=json.dumps(FLUSH).encode()),
)
"""Asked of the engines themselves: the first path names no model to route by."""


class DeepinferFleet:
    """Its gateway stays the same one for all policies."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._replicas = self._ready()
        pin(sorted(pid for pid, _ in self._replicas))

    @contextmanager
    def gateway(self, policy: str) -> Iterator[Gateway]:
        self._route_by(policy)
        asyncio.run(_emptied([endpoint for _, endpoint in self._replicas]))
        yield Gateway(self._fleet.url)

    def _route_by(self, policy: str) -> None:
        """Raises `RunEnded` if that is refused, or costs an engine its life."""
        deployment = f"/v1/deployments/{MODEL}"
        if self._fleet.get(deployment).get("routing", POLICIES[0]) == policy:
            return
        answer = self._fleet.http.patch(deployment, json={"routing": policy})
        if not answer.is_success:
            raise RunEnded(f"serve refused to route by {policy}: {answer.text}")
        if self._ready() != self._replicas:
            raise RunEnded(f"Routing by {policy} started the engines anew, which it must not.")

    def _ready(self) -> set[tuple[int, str]]:
        """Each replica's process, and where its shim is asked."""
        return {(replica["pid"], replica["endpoint"]) for replica in self._fleet.wait_ready(MODEL, START_SECONDS)}


@contextmanager
def deepinfer_fleet(home: Path) -> Iterator[DeepinferFleet]:
    with Fleet(home).running() as fleet:
        fleet.deploy(
            model=MODEL,
            engine="vllm",
            backend="native",
            device="cpu",
            dtype=DTYPE,
            max_model_len=MAX_MODEL_LEN,
            replicas=REPLICAS,
            engine_args=FLAGS,
            env=ENVIRONMENT,
        )
        yield DeepinferFleet(fleet)


async def _emptied(endpoints: list[str]) -> None:
    """Returns when every shim has told that its engine holds nothing."""
    try:
        async with asyncio.timeout(_EMPTY_SECONDS):
            await asyncio.gather(*map(_empty, endpoints))
    except TimeoutError:
        raise RunEnded(f"An engine did not tell of its emptied cache within {_EMPTY_SECONDS:.0f} s.") from None
    await asyncio.sleep(_NOTICE_SECONDS)


async def _empty(endpoint: str) -> None:
    client, held = EngineClient(endpoint), KeySet()
    mirror = KvMirror(held)
    try:
        await client.info(timeout_seconds=_EMPTY_SECONDS, wait_for_ready=True)  # a busy one may be slow to connect
        for call in _EMPTYING:
            if (answer := await client.call(call)).status != 200:
                raise RunEnded(f"{call.path} of {endpoint} answered {answer.status}.")
        async with aclosing(mirrored(client, mirror)) as states:
            async for _ in states:
                if mirror.whole and not held:
                    return
    finally:
        await client.close()
