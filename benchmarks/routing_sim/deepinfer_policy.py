"""deepinfer's own policy: the gateway's router and what it keeps of each engine, fed as the gateway feeds them.

Left out is the gateway's queue: as with the peers, a request goes to an engine when it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Final

from benchmarks.routing_sim.policy import Asked
from benchmarks.routing_sim.replica import Replica
from deepinfer.control_plane.gateway.work import Experience
from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.forecast import Forecast
from deepinfer.control_plane.router.kv_index import KvIndex
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.router import Router
from deepinfer.control_plane.router.trust import NOT_YET
from deepinfer.engine_shim.kv_chain import token_bytes
from deepinfer.engine_shim.kv_mirror import KvMirror
from deepinfer.engine_shim.state_wire import EngineState
from tests.routed_replica import RoutedReplica

_MODEL: Final = "sim"


class _Candidate(RoutedReplica):
    """Told of by its engine's shim."""

    def __init__(self, replica: Replica, index: KvIndex) -> None:
        info = replica.status.info()
        super().__init__(info.placement, Outlook(info.placement, index.shelf()), deployment=_MODEL)
        self.place = replica.place
        self.outlook.knows(info)
        self.now = asyncio.get_running_loop().time
        self._mirror = KvMirror(self.outlook.shelf)
        replica.tell(self._told)

    def _told(self, state: EngineState) -> None:
        self._mirror.apply(state)
        self.outlook.shelf.describe(self._mirror.groups, self.outlook.block_size)
        self.outlook.trust.missing = "" if self._mirror.whole else NOT_YET
        self.outlook.told(state.load, self.now())


class DeepinferPolicy:
    def __init__(self, fleet: Sequence[Replica], chance: Random) -> None:
        index = KvIndex()
        self._candidates = [_Candidate(replica, index) for replica in fleet]
        self._router = Router()
        self._experience = Experience()
        self._turn = 0
        self._now = asyncio.get_running_loop().time
        self._under_way: dict[Asked, tuple[_Candidate, Forecast]] = {}

    def choose(self, asked: Asked) -> int:
        self._turn += 1
        choice = self._router.choose(self._candidates, self._routed(asked), self._turn, self._now())
        choice.candidate.last_used = self._turn
        choice.candidate.outlook.went(choice.forecast)
        self._router.took(choice, self._experience.bytes_a_token)
        self._under_way[asked] = choice.candidate, choice.forecast
        return choice.candidate.place

    def began(self, asked: Asked, cached_tokens: int) -> None:
        candidate, forecast = self._under_way[asked]
        candidate.outlook.began(forecast, self._now())
        candidate.outlook.compared(forecast, asked.tokens, cached_tokens, self._now())

    def ended(self, asked: Asked) -> None:
        candidate, forecast = self._under_way.pop(asked)
        candidate.outlook.over(forecast, self._now())
        self._experience.learn(0, 0, asked.max_tokens)

    def _routed(self, asked: Asked) -> RoutedRequest:
        return RoutedRequest(
            model=_MODEL,
            id=str(self._turn).encode(),
            prompt_tokens=asked.tokens,
            tokens=token_bytes(asked.token_ids),
            answer_tokens=min(asked.max_tokens, self._experience.answer_tokens),
            streams=True,
        )
