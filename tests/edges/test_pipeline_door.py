"""Layouts in, states out: what a process of a replica in stages and its agent tell each other."""

from __future__ import annotations

import asyncio

from deepinfer.engine_shim.pipeline_door import PipelineDoor
from deepinfer.fleet.pipeline import Layout


def layout(number: int, replica: str = "chat-aaaaa-0", why: str = "") -> Layout:
    changes = {"node": "a", "layers": (0, 1), "seats": (), "why": why}
    return Layout.model_validate(
        {"id": replica, "epoch": 1, "number": number, "head": replica, "head_epoch": 1, **changes}
    )


async def test_the_newest_layout_is_found_whenever_it_came() -> None:
    door = PipelineDoor()
    waiting = asyncio.ensure_future(door.layout_after(None))
    await asyncio.sleep(0)
    assert not waiting.done()
    await door.set_layout(layout(1))
    assert await waiting == layout(1)
    assert await door.layout_after(None) == layout(1)
    for number in (2, 3):
        await door.set_layout(layout(number))
    assert await door.layout_after(layout(1)) == layout(3), "the one between is over"


async def test_an_older_layout_of_the_same_replica_is_not_heard() -> None:
    door = PipelineDoor()
    await door.set_layout(layout(5))
    waiting = asyncio.ensure_future(door.layout_after(layout(5)))
    for number in (4, 5, 1):
        await door.set_layout(layout(number))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await door.set_layout(layout(6))
    assert await waiting == layout(6)


async def test_a_layout_of_another_replica_is_heard_whatever_its_number() -> None:
    """Its process serves another one now."""
    door = PipelineDoor()
    await door.set_layout(layout(5))
    await door.set_layout(layout(1, "chat-aaaaa-1"))
    assert await door.layout_after(layout(5)) == layout(1, "chat-aaaaa-1")


async def test_states_are_told_at_once_and_at_each_change() -> None:
    door = PipelineDoor()
    one, other = door.states(), door.states()
    assert (await anext(one)).number == (await anext(other)).number == 0
    for number in (1, 2):
        coming = asyncio.ensure_future(anext(one))
        await asyncio.sleep(0)
        await door.tell(number=number)
        assert (await coming).number == number
    assert (await anext(other)).number == 2, "who is slow hears the newest"
    await door.tell(lost="chat.stages-aaaaa-0")
    told = await anext(one)
    assert (told.number, told.lost) == (2, "chat.stages-aaaaa-0"), "the rest stays as it is"


async def test_what_does_not_change_anything_is_not_told() -> None:
    door = PipelineDoor()
    states = door.states()
    await anext(states)
    coming = asyncio.ensure_future(anext(states))
    await asyncio.sleep(0)
    await door.tell(number=0, lost="")
    await asyncio.sleep(0.01)
    assert not coming.done()
    await door.tell(number=1)
    assert (await coming).number == 1
