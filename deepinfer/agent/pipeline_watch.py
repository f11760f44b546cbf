"""A replica in stages, for its agent: a head gets every new layout; what it or a host tells goes into the status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from deepinfer.engine_shim.client import EngineClient
from deepinfer.fleet.errors import EngineFailed
from deepinfer.fleet.pipeline import Layout

_AGAIN_SECONDS = 0.2

log = logging.getLogger(__name__)


class PipelineWatch:
    """Of one placement. `publish` puts a changed field into its status."""

    def __init__(self, publish: Callable[..., Any]) -> None:
        self._publish = publish
        self._layout: Layout | None = None
        self._changed = asyncio.Event()

    def arrange(self, layout: Layout) -> None:
        if layout != self._layout:
            self._layout = layout
            self._changed.set()

    async def accompany(self, client: EngineClient) -> None:
        """As long as the engine runs; an engine that is not in stages has nothing to tell."""
        self._changed.set()  # this engine has not heard of any
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tell_layouts(client))
            tasks.create_task(self._hear(client))

    async def _tell_layouts(self, client: EngineClient) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._layout is None:
                continue
            try:
                await client.set_layout(self._layout)
            except EngineFailed as error:
                log.debug("a head does not take its layout yet: %s", error)
                await asyncio.sleep(_AGAIN_SECONDS)
                self._changed.set()

    async def _hear(self, client: EngineClient) -> None:
        """What was told last stands while nothing is heard: that the process has ended is seen elsewhere."""
        is_in_stages = False
        while True:
            try:
                async for state in client.pipeline_states():
                    is_in_stages = True
                    self._publish(pipeline=state)
                if not is_in_stages:
                    return
            except EngineFailed as error:
                if "unimplemented" in str(error):
                    return  # an older shim
                log.debug("a process of a pipeline does not tell how it is: %s", error)
            await asyncio.sleep(_AGAIN_SECONDS)
