"""How an agent and a replica in stages speak: layouts in, states out. The truth that the two RPCs of it tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from deepinfer.fleet.pipeline import Layout, PipelineState


class PipelineDoor:
    """Belongs to the event loop it was made on."""

    def __init__(self) -> None:
        self.state = PipelineState()
        self._layout: Layout | None = None
        self._changed = asyncio.Condition()

    async def set_layout(self, layout: Layout) -> None:
        """What was decided last. An older one than is known of the same replica is not heard."""
        async with self._changed:
            known = self._layout
            if known is None or known.id != layout.id or known.number < layout.number:
                self._layout = layout
                self._changed.notify_all()

    async def layout_after(self, last: Layout | None) -> Layout:
        """The newest, once it is another one than the `last`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._layout not in (None, last))
            assert self._layout is not None  # noqa: S101 - for the type checker: just waited for
            return self._layout

    async def tell(self, **changes: Any) -> None:
        """The state is another one now."""
        async with self._changed:
            self.state = self.state.model_copy(update=changes)
            self._changed.notify_all()

    async def states(self) -> AsyncGenerator[PipelineState, None]:
        """The state, then every change, for ever."""
        told: PipelineState | None = None
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda last=told: self.state != last)  # type: ignore[misc]
                told = self.state
            yield told
