"""Leaving the fleet without a gap: what runs here is replaced elsewhere and ends, then the worker does.

The node's record says that it leaves; the control plane moves everything away. Nothing is ended here of the worker's
own accord: what is left at the deadline runs on, as after any other SIGTERM.
"""

from __future__ import annotations

import asyncio

from deepinfer.agent.node_agent import NodeAgent
from deepinfer.agent.node_record import NodeRecord


async def leave(record: NodeRecord, agent: NodeAgent, deadline_seconds: float) -> None:
    """Returns when nothing is left here, or it was waited for long enough."""
    record.leave()
    agent.close(record.closed)
    try:
        async with asyncio.timeout(deadline_seconds):
            await _until_nothing_is_left(agent)
    except TimeoutError:
        left, waited = ", ".join(agent.holds), f"{deadline_seconds:g} s"
        print(f"leaving {left}, not moved away after {waited}; it runs on for the next worker", flush=True)


async def _until_nothing_is_left(agent: NodeAgent) -> None:
    waited_for: tuple[str, ...] = ()
    while True:
        agent.passed.clear()
        if not (left := agent.holds):
            print("leaving: nothing runs here any more", flush=True)
            return
        if left != waited_for:
            names = ", ".join(left)
            print(f"leaving when {names} has been moved away; another SIGTERM leaves at once", flush=True)
        waited_for = left
        await agent.passed.wait()
