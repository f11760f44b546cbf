"""Readers of the prompts of all models that this gateway routes by what their engines hold.

One is made once, however many engines have its files; and an engine is asked once for each version of it whether it
makes the same tokens.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from weakref import WeakValueDictionary

from deepinfer.control_plane.prompts.probing import asking, mismatch
from deepinfer.control_plane.prompts.reader import PromptReader, PromptsUnforeseen
from deepinfer.engine_shim.client import EngineClient, ShimInfo


class PromptReaders:
    """Whoever uses a reader keeps it; unused ones are forgotten."""

    def __init__(self) -> None:
        self._made: WeakValueDictionary[str, PromptReader] = WeakValueDictionary()
        self._tried: dict[tuple[str, str, str], str] = {}  # digest, engine, version -> why it is not to be believed
        self._making: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def of(self, info: ShimInfo, client: EngineClient) -> PromptReader:
        """The one of a ready engine. `PromptsUnforeseen` where there is none; `EngineFailed`: ask again."""
        digest = info.prompt_digest
        if not digest:
            raise PromptsUnforeseen("its engine does not say how it reads prompts")
        async with self._making[digest]:
            reader = self._made.get(digest)
            if reader is None:
                files = await client.prompt_files(digest)
                reader = self._made[digest] = await asyncio.to_thread(PromptReader.of, files)
            tried = (digest, info.engine, info.engine_version)
            if tried not in self._tried:
                self._tried[tried] = await mismatch(reader, asking(client), info.served_names[0])
        if self._tried[tried]:
            raise PromptsUnforeseen(self._tried[tried])
        return reader
