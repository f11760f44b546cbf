"""KV blocks that go from one simulated engine to another of this machine, as with vLLM's NIXL connector.

Asked with `do_remote_decode`, an engine computes a prompt and answers with what names itself and the prompt's blocks,
which it keeps until they were fetched, or nobody came for too long. Asked with that answer, another one fetches them
over a connection to the first one's own port, for as long as their tokens take at its rate. Only whole blocks go; what
cannot be fetched, and what finds no room, is computed.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.sim_blocks import BlockCache, chained_blocks
from deepinfer.fleet.errors import InvalidRequest

log = logging.getLogger(__name__)

_HOST: Final = "127.0.0.1"
_YES, _NO, _DONE = b"+\n", b"-\n", b"done\n"
_PATIENCE_SECONDS: Final = 5.0
"""With an engine that should answer at once."""


class Offer(Struct, frozen=True):
    """Blocks of a prompt that lie in another engine: `kv_transfer_params` as vLLM's connector writes them."""

    do_remote_prefill: bool
    do_remote_decode: bool
    remote_engine_id: Annotated[str, Meta(max_length=64)]
    remote_request_id: Annotated[str, Meta(max_length=64)]
    remote_block_ids: list[list[Annotated[int, Meta(ge=0)]]]  # by group; there is one
    remote_host: str
    remote_port: Annotated[int, Meta(ge=1, le=65_535)]
    remote_num_tokens: Annotated[int, Meta(ge=0)]


def lends(given: Mapping[str, Any] | None) -> bool:
    """Whether another engine will take the prompt over."""
    return bool(given and given.get("do_remote_decode"))


def offer_in(given: Mapping[str, Any] | None) -> Offer | None:
    """What is to be fetched. Raises `InvalidRequest` for what no simulated engine of this machine has said."""
    if not given or not given.get("do_remote_prefill"):
        return None
    try:
        offer = msgspec.convert(given, Offer)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"'kv_transfer_params': {error}.", param="kv_transfer_params") from error
    if offer.remote_host != _HOST:
        reason = f"'kv_transfer_params': simulated engines fetch from {_HOST} only."
        raise InvalidRequest(reason, param="kv_transfer_params")
    return offer


class SimTransfers:
    """Of one engine. `freed` is called when blocks that were kept for another one need not be any longer."""

    def __init__(self, args: SimArgs, cache: BlockCache, freed: Callable[[], None]) -> None:
        self._args = args
        self._cache = cache
        self._freed = freed
        self._engine_id = uuid.uuid4().hex
        self._lent: dict[str, tuple[Sequence[int], asyncio.Handle]] = {}  # by request
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        """Before anything is lent."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, _HOST, 0)

    def lend(self, names: Sequence[int], tokens: int) -> dict[str, Any]:
        """Keep these blocks, which are in use; the answer is for who fetches them."""
        assert self._server is not None  # noqa: S101 - `listen` was awaited
        request = uuid.uuid4().hex
        self._cache.acquire(names)
        forget = asyncio.get_running_loop().call_later(
            self._args.transfer_timeout_seconds, self._give_back, request, "nobody came for them"
        )
        self._lent[request] = names, forget
        port = self._server.sockets[0].getsockname()[1]
        return msgspec.to_builtins(  # type: ignore[no-any-return]
            Offer(True, False, self._engine_id, request, [list(names)], _HOST, port, tokens)
        )

    async def fetch(self, offer: Offer, prompt: Sequence[int]) -> None:
        """Into the cache, if they are this prompt's and the other engine still has them."""
        blocks = list(chained_blocks(prompt, self._args.block_size))
        names = [block.name for block in blocks]
        if offer.remote_block_ids != [names]:
            log.warning("another engine's blocks are not of this prompt, or of another size; it is computed here")
            return
        held = self._cache.acquire(names)
        self._cache.release(names[:held], 0)
        seconds = (len(names) - held) * self._args.block_size / self._args.transfer_tokens_per_second
        try:
            await self._fetched(offer, seconds)
        except (OSError, EOFError, TimeoutError) as error:
            log.warning("a prompt's blocks cannot be fetched (%r); it is computed here", error)
        else:
            self._cache.receive(blocks)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for _, forget in self._lent.values():
            forget.cancel()

    async def _fetched(self, offer: Offer, seconds: float) -> None:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            reader, writer = await asyncio.open_connection(offer.remote_host, offer.remote_port)
        try:
            writer.write(f"{offer.remote_engine_id} {offer.remote_request_id}\n".encode())
            async with asyncio.timeout(_PATIENCE_SECONDS):
                if await reader.readexactly(len(_YES)) != _YES:
                    raise ConnectionRefusedError("they are not kept there any more")
            await asyncio.sleep(seconds)
            writer.write(_DONE)
            await writer.drain()
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One fetch. Its end gives the blocks back, however it ends: nobody fetches twice."""
        with suppress(OSError, ValueError):
            engine, _, request = (await reader.readline()).decode(errors="replace").strip().partition(" ")
            known = engine == self._engine_id and request in self._lent
            writer.write(_YES if known else _NO)
            if known:
                self._give_back(request, "" if await reader.readline() == _DONE else "their reader went away")
        writer.close()

    def _give_back(self, request: str, why: str) -> None:
        names, forget = self._lent.pop(request, ((), None))
        if forget is None:
            return
        forget.cancel()
        if why:
            log.warning("%d blocks that were kept for another engine are given back: %s", len(names), why)
        self._cache.release(names, 0)
        self._freed()
