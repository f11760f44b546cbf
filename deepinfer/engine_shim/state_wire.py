"""WatchState on the wire: bytes to values and back, as `wire.py` does it for the other methods."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Final

from deepinfer.engine_shim.kv_contents import KvGroup, Names
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import PHASE_NUMBERS, PHASES, ShimPhase
from deepinfer.protos import engine_service as pb

DRIFT_SECONDS: Final = 5.0
"""A busy engine says something so often at least: its rates drift with every step."""


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
    stored: Names = field(default_factory=dict)
    removed: Names = field(default_factory=dict)
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
    for group, names in state.stored.items():
        m.stored.add(group=group, names=names)
    for group, names in state.removed.items():
        m.removed.add(group=group, names=names)
    return bytes(m.SerializeToString())


def state_from_bytes(data: bytes) -> EngineState:
    m = pb.EngineState.FromString(data)
    return EngineState(
        boot_epoch=m.boot_epoch,
        sequence=m.sequence,
        snapshot=m.snapshot,
        phase=PHASES[m.phase],
        message=m.message,
        load=EngineLoad(**{f.name: getattr(m.load, f.name) for f in m.load.DESCRIPTOR.fields}),
        stored={said.group: said.names for said in m.stored},
        removed={said.group: said.names for said in m.removed},
        digest=m.digest,
        after=m.after,
        more=m.more,
        groups=tuple(KvGroup(g.index, g.block_size, g.kind, g.tail) for g in m.groups),
        served_names=tuple(m.served_names),
    )
