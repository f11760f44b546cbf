"""WatchState on the wire: bytes to values and back, as `wire.py` does it for the other methods."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from deepinfer.engine_shim.kv_contents import BlockKey, KvBlock, KvGroup
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import PHASE_NUMBERS, PHASES, ShimPhase
from deepinfer.protos import engine_service as pb


@dataclass(frozen=True, slots=True)
class EngineState:
    """One message of WatchState; `KvMirror` applies it.

    A snapshot replaces everything known before, and may go on in the messages after it while `more` is set. Else the
    message builds on the contents at sequence `after`: `removed` first, then `stored`. `digest` is of the whole
    contents at `sequence`. To a reader that did not ask for the contents there are none.
    """

    boot_epoch: int
    sequence: int
    snapshot: bool
    phase: ShimPhase
    message: str = ""
    load: EngineLoad = field(default_factory=EngineLoad)
    stored: tuple[KvBlock, ...] = ()
    removed: tuple[BlockKey, ...] = ()
    digest: int = 0
    after: int = 0
    more: bool = False
    groups: tuple[KvGroup, ...] = ()  # empty: the same as before
    served_names: tuple[str, ...] = ()  # in snapshots and when they changed; empty: as they were


def watch_to_bytes(kv: bool) -> bytes:
    return bytes(pb.WatchStateRequest(kv_contents=kv).SerializeToString())


def watch_from_bytes(data: bytes) -> bool:
    return bool(pb.WatchStateRequest.FromString(data).kv_contents)


def state_to_bytes(state: EngineState) -> bytes:
    m = pb.EngineState(
        boot_epoch=state.boot_epoch,
        sequence=state.sequence,
        snapshot=state.snapshot,
        phase=PHASE_NUMBERS[state.phase],
        message=state.message,
        load=asdict(state.load),
        digest=state.digest,
        after=state.after,
        more=state.more,
        groups=[asdict(group) for group in state.groups],
        served_names=state.served_names,
    )
    for block in state.stored:
        m.stored.add(
            hash=block.hash,
            parent=block.parent,
            token_ids=block.token_ids,
            group=block.group,
            lora=block.lora,
            extra=block.extra,
        )
    for group, hashes in _by_group(state.removed).items():
        m.removed.add(group=group, hashes=hashes)
    return bytes(m.SerializeToString())


def _by_group(keys: Iterable[BlockKey]) -> dict[int, list[int]]:
    hashes: dict[int, list[int]] = {}
    for group, block_hash in keys:
        hashes.setdefault(group, []).append(block_hash)
    return hashes


def state_from_bytes(data: bytes) -> EngineState:
    m = pb.EngineState.FromString(data)
    return EngineState(
        boot_epoch=m.boot_epoch,
        sequence=m.sequence,
        snapshot=m.snapshot,
        phase=PHASES[m.phase],
        message=m.message,
        load=EngineLoad(**{f.name: getattr(m.load, f.name) for f in m.load.DESCRIPTOR.fields}),
        stored=tuple(map(_block, m.stored)),
        removed=tuple((gone.group, block_hash) for gone in m.removed for block_hash in gone.hashes),
        digest=m.digest,
        after=m.after,
        more=m.more,
        groups=tuple(KvGroup(g.index, g.block_size, g.kind, g.tail) for g in m.groups),
        served_names=tuple(m.served_names),
    )


def _block(m: Any) -> KvBlock:
    return KvBlock(m.hash, m.parent, tuple(m.token_ids), m.group, m.lora, m.extra)
