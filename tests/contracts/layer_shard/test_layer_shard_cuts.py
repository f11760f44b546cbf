"""The network is cut between processes of a pipeline: that is told with the right name, and no answer changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role
from deepinfer.engine_shim.engines.layer_shard.pipeline.head import Seat
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import Peer
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import StageLost
from deepinfer.engine_shim.token_engine import SamplingParams
from tests.contracts.layer_shard.pipelines import Pipelined, answer_of, answers_amid
from tests.contracts.layer_shard.tcp_proxy import TcpProxy, proxied

GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
NOTICED_SECONDS = 3.0
LINKS = {
    "head to first stage, orders": (0, (Role.HEAD,)),
    "head to last stage, orders": (1, (Role.HEAD,)),
    "head to first stage, rows": (0, (Role.ROWS,)),
    "stage to stage, rows": (1, (Role.ROWS,)),
}


class Cuttable(Pipelined):
    """Three stages, of which those after the head lie behind proxies."""

    def __init__(self, folder: Path, proxies: ExitStack) -> None:
        self._proxies = proxies
        self.network: dict[str, TcpProxy] = {}
        super().__init__(folder, (2, 5), 1 << 20)

    @property
    def seats(self) -> list[Seat]:
        return [Seat(Peer(seat.peer.name, self._door_of(seat.peer)), seat.layers) for seat in super().seats]

    def _door_of(self, peer: Peer) -> str:
        if peer.name not in self.network:
            self.network[peer.name] = self._proxies.enter_context(proxied(peer.endpoint))
        return self.network[peer.name].endpoint

    async def replace(self, number: int, epoch: int) -> None:
        old = self.stages[number]
        self.stages[number] = self.spare(f"spare-{epoch}")
        try:
            await self.engine.arrange(epoch, self.seats)
        finally:
            await asyncio.to_thread(old.close)


@pytest.fixture
async def pipeline(tiny_model: Callable[..., Path]) -> AsyncIterator[Cuttable]:
    with ExitStack() as proxies:
        made = Cuttable(tiny_model("llama"), proxies)
        try:
            yield made
        finally:
            await made.close()


@contextmanager
def noticed_in_time() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < NOTICED_SECONDS


async def undisturbed(pipeline: Cuttable, prompts: list[list[int]]) -> list[list[int]]:
    return await asyncio.gather(*(answer_of(pipeline.engine, prompt, GREEDY) for prompt in prompts))


@pytest.mark.parametrize(
    ("how", "link"),
    [
        *(("silence", link) for link in LINKS),
        ("reset", "head to first stage, rows"),
        ("reset", "stage to stage, rows"),
    ],
)
async def test_a_cut_is_noticed_and_a_spare_goes_on_with_every_answer(
    how: str, link: str, pipeline: Cuttable, prompts: list[list[int]]
) -> None:
    whole = await undisturbed(pipeline, prompts)
    number, roles = LINKS[link]

    async def cut() -> None:
        name = pipeline.stages[number].name
        with noticed_in_time():
            getattr(pipeline.network[name], how)(*roles)
            lost = await pipeline.lost.get()
        assert lost.stage == name
        await pipeline.replace(number, epoch=2)

    assert await answers_amid(pipeline.engine, prompts, GREEDY, cut) == whole
    assert await undisturbed(pipeline, prompts) == whole


async def test_a_cut_between_two_stages_is_noticed_while_nothing_is_asked(pipeline: Cuttable) -> None:
    with noticed_in_time():
        pipeline.network["stage-2"].silence(Role.ROWS)
        lost = await pipeline.lost.get()
    assert lost.stage == "stage-2"


async def test_who_cannot_be_reached_by_the_stage_before_it_is_the_one_to_replace(
    pipeline: Cuttable, prompts: list[list[int]]
) -> None:
    """The first spare is cut off from the stage before it, though not from the head; the next one serves."""
    whole = await undisturbed(pipeline, prompts)

    async def lost_and_replaced_badly() -> None:
        await asyncio.to_thread(pipeline.stages[1].close)
        assert (await pipeline.lost.get()).stage == "stage-2"
        pipeline.stages[1] = pipeline.spare("unreachable")
        assert pipeline.seats
        pipeline.network["unreachable"].silence(Role.ROWS)
        with pytest.raises(StageLost) as raised:
            await pipeline.engine.arrange(2, pipeline.seats)
        assert raised.value.stage == "unreachable"
        assert (await pipeline.lost.get()).stage == "unreachable"
        await pipeline.replace(1, epoch=3)

    assert await answers_amid(pipeline.engine, prompts, GREEDY, lost_and_replaced_badly) == whole


async def test_a_network_that_heals_is_used_again(pipeline: Cuttable, prompts: list[list[int]]) -> None:
    whole = await undisturbed(pipeline, prompts)

    async def reset_for_a_moment() -> None:
        pipeline.network["stage-1"].reset(Role.HEAD, Role.ROWS)
        assert (await pipeline.lost.get()).stage == "stage-1"
        with suppress(StageLost):  # one of its two connections may have been seen to end, and not yet the other
            await pipeline.engine.arrange(2, pipeline.seats)
            return
        await pipeline.engine.arrange(3, pipeline.seats)

    assert await answers_amid(pipeline.engine, prompts, GREEDY, reset_for_a_moment) == whole
