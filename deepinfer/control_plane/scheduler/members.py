"""The processes of a replica in stages as the scheduler sees them, and how layers are cut over some of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.pipeline import Layers, PipelineState, Seat
from deepinfer.fleet.resources import Intent, Node, Phase, Placement
from deepinfer.planning.plan import LayersDoNotAddUp, Plan, plan, plan_by_hand
from deepinfer.planning.task import OfferedDevice, Task

_CONTEXT = 4096  # tokens of one request that must fit, where the deployment does not say


@dataclass(frozen=True, eq=False)
class Member:
    """A process that is there and can be seated."""

    placement: Placement
    node: Node
    state: PipelineState

    @property
    def memory_bytes(self) -> int:
        return sum(device.memory_bytes for device in self.node.devices if device.id in self.placement.devices)

    def sits_in(self, seat: Seat) -> bool:
        mine = (self.placement.id, self.placement.epoch, self.state.endpoint)
        return mine == (seat.placement, seat.epoch, seat.endpoint)

    def can_speak_to(self, other: Member) -> bool:
        """They know each other by the same key."""
        return self.node.pipeline_key == other.node.pipeline_key


def member(placement: Placement, sight: Sight) -> Member | None:
    """None where it is not up, or has to go."""
    node, status = sight.verified.get(placement.node), sight.fleet.status_of(placement)
    if node is None or status is None or status.pipeline is None or placement.intent is not Intent.SERVE:
        return None
    is_up = status.phase in (Phase.STARTING, Phase.READY) and status.pipeline.endpoint
    return None if not is_up or sight.must_leave(placement) else Member(placement, node, status.pipeline)


def seat_of(one: Member, layers: Layers) -> Seat:
    placement = one.placement
    return Seat(
        placement=placement.id,
        epoch=placement.epoch,
        node=placement.node,
        endpoint=one.state.endpoint,
        layers=layers,
    )


def cut(head: Member, others: Sequence[Member], shape: ModelShape) -> list[tuple[Member, Layers]]:
    """Who has which layers, in order; the head has the first, for there token ids go in. Empty where nothing fits."""
    members = [head, *others]
    planned = _planned(members, shape)
    if planned is None or len(planned.stages) < 2:
        return []  # a pipeline has a stage after its head
    by_id = {one.placement.id: one for one in members}
    return [(by_id[stage.device], (stage.start, stage.stop)) for stage in planned.stages]


def _planned(members: Sequence[Member], shape: ModelShape) -> Plan | None:
    spec = members[0].placement.spec
    context = min(spec.max_model_len or _CONTEXT, shape.longest_context)
    devices = tuple(_offered(one, members) for one in members)
    task = Task(model=shape, devices=devices, context=context, concurrency=1, head_first=True)
    if spec.pipeline and spec.pipeline.layers and len(spec.pipeline.layers) == len(members):
        try:
            by_hand = plan_by_hand(task, spec.pipeline.layers)
        except LayersDoNotAddUp:
            by_hand = None
        if isinstance(by_hand, Plan):
            return by_hand
    by_itself = plan(task)
    return by_itself if isinstance(by_itself, Plan) else None


def _offered(one: Member, members: Sequence[Member]) -> OfferedDevice:
    """Several stages on one device share it."""
    mine = (one.node.name, one.placement.devices)
    sharing = sum((other.node.name, other.placement.devices) == mine for other in members)
    kind = one.placement.devices[0].partition(":")[0]
    return OfferedDevice(name=one.placement.id, memory_bytes=one.memory_bytes // sharing, kind=kind)
