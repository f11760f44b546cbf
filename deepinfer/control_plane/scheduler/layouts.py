"""Which stage lies where, of every replica in stages. Pure: from what is placed and what its processes tell.

What serves is left as it is. A stage that is lost, or whose host must go, is taken over by a spare with the same
layers; where there is none, or where stages are missing that could be there, the layers are cut anew over what is
there. A host where a stage was lost is not seated again before it is another process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deepinfer.control_plane.scheduler.sight import Sight
from deepinfer.fleet.model_shape import ModelShape
from deepinfer.fleet.pipeline import Layers, Layout, PipelineState, Seat, hosts_name, is_hosts_name
from deepinfer.fleet.resources import Intent, Node, Phase, Placement
from deepinfer.planning.plan import LayersDoNotAddUp, Plan, plan, plan_by_hand
from deepinfer.planning.task import OfferedDevice, Task

_CONTEXT = 4096  # tokens of one request that must fit, where the deployment does not say


@dataclass(frozen=True)
class _Process:
    """A head, or a host of a stage that can be seated."""

    placement: Placement
    node: Node
    state: PipelineState

    @property
    def memory_bytes(self) -> int:
        return sum(device.memory_bytes for device in self.node.devices if device.id in self.placement.devices)

    def sits_in(self, seat: Seat) -> bool:
        mine = (self.placement.id, self.placement.epoch, self.state.endpoint)
        return mine == (seat.placement, seat.epoch, seat.endpoint)


def layouts(sight: Sight) -> tuple[Layout, ...]:
    """Of the fleet as it will be once the plan is written; sorted by key."""
    found: list[Layout] = []
    for name, deployment in sight.deployments.items():
        if deployment.spec.pipeline is not None and not is_hosts_name(name):
            found += _of_deployment(name, sight)
    made = {layout.id for layout in found}
    found += [layout for layout in sight.fleet.layouts if layout.id not in made and _still_serves(layout, sight)]
    return tuple(sorted(found, key=lambda layout: (layout.node, layout.id)))


def _still_serves(layout: Layout, sight: Sight) -> bool:
    """Its head is placed: it may drain, or be on a node that is not there."""
    mine = (layout.node, layout.epoch)
    return any((p.node, p.epoch) == mine for p in sight.placed.get(layout.id, ()))


def _of_deployment(name: str, sight: Sight) -> Iterator[Layout]:
    """Heads by age; a host that one head has is not free for another."""
    hosts = [process for p in sight.of_deployment.get(hosts_name(name), ()) if (process := _host(p, sight))]
    before = {layout.id: layout for layout in sight.fleet.layouts if _still_serves(layout, sight)}
    seated = {seat.placement for layout in before.values() for seat in layout.seats}
    heads = [p for p in sight.of_deployment.get(name, ()) if p.intent is Intent.SERVE and p.node in sight.verified]
    for head in sorted(heads, key=lambda p: p.replica):
        had = before.get(head.id)
        own = {seat.placement for seat in had.seats} if had else set()
        free = [host for host in hosts if host.placement.id not in seated - own]
        made = _layout(head, had or _last(head, sight), free, sight)
        if made is not None:
            seated |= {seat.placement for seat in made.seats}
            yield made


def _last(head: Placement, sight: Sight) -> Layout | None:
    """Of an earlier epoch of it: numbers go on from there."""
    return next((layout for layout in sight.fleet.layouts if layout.id == head.id), None)


def _host(placement: Placement, sight: Sight) -> _Process | None:
    node, status = sight.verified.get(placement.node), sight.fleet.status_of(placement)
    if node is None or status is None or status.pipeline is None or placement.intent is not Intent.SERVE:
        return None
    if status.phase is not Phase.READY or not status.pipeline.endpoint or sight.must_leave(placement):
        return None
    return _Process(placement, node, status.pipeline)


def _layout(head: Placement, had: Layout | None, hosts: list[_Process], sight: Sight) -> Layout | None:
    status, node = sight.fleet.status_of(head), sight.verified[head.node]
    state = status.pipeline if status is not None and status.pipeline is not None else PipelineState()
    own = _Process(head, node, state)
    if had is not None and (had.epoch, had.node) != (head.epoch, head.node):
        number, had = had.number, None  # another process: it begins anew
    else:
        number = had.number if had else 0
    avoided = _avoided(had, state, hosts)
    usable = [h for h in hosts if h.state.endpoint not in avoided and h.node.pipeline_key == node.pipeline_key]
    options = head.spec.pipeline
    if options is None:
        return had
    if had is not None:
        return _kept(had, usable, avoided, options.stages) or _anew(own, usable, had, avoided) or had
    if len(usable) < options.stages - 1 or state.shape is None:
        return None  # they are coming up
    first = Layout(id=head.id, node=head.node, epoch=head.epoch, number=number + 1, layers=(0, 1), seats=())
    return _cut(own, usable[: options.stages - 1], first, state.shape)


def _avoided(had: Layout | None, state: PipelineState, hosts: list[_Process]) -> tuple[str, ...]:
    """Endpoints: also of the one that the head has just told to be lost."""
    if had is None:
        return ()
    lost = {seat.endpoint for seat in had.seats if state.number == had.number and seat.placement == state.lost}
    there = {host.state.endpoint for host in hosts}
    return tuple(sorted((lost | set(had.avoided)) & there))


def _kept(had: Layout, usable: list[_Process], avoided: tuple[str, ...], stages: int) -> Layout | None:
    """As it is, or with spares in the place of what is lost. None: the layers must be cut anew."""
    spares = [host for host in usable if not any(host.sits_in(seat) for seat in had.seats)]
    seats, replaced = [], []
    for seat in had.seats:
        if any(host.sits_in(seat) for host in usable):
            seats.append(seat)
        elif spares:
            replaced.append(f"{seat.placement} on {seat.node}")
            seats.append(_seat(spares.pop(0), seat.layers))
        else:
            return None
    if len(seats) + 1 < stages and spares:
        return None  # one more can take part
    if not replaced:
        return had if avoided == had.avoided else had.model_copy(update={"avoided": avoided})
    why = f"{', '.join(replaced)} replaced"
    return had.model_copy(update={"number": had.number + 1, "seats": tuple(seats), "avoided": avoided, "why": why})


def _anew(head: _Process, usable: list[_Process], had: Layout, avoided: tuple[str, ...]) -> Layout | None:
    """Cut over what is there; None where the model does not fit."""
    options = head.placement.spec.pipeline
    if head.state.shape is None or options is None:
        return None
    by_use = sorted(usable, key=lambda host: not any(host.sits_in(seat) for seat in had.seats))
    next_one = had.model_copy(update={"number": had.number + 1, "avoided": avoided})
    chosen = sorted(by_use[: options.stages - 1], key=lambda host: host.placement.id)  # who comes back is where it was
    return _cut(head, chosen, next_one, head.state.shape)


def _cut(head: _Process, hosts: list[_Process], layout: Layout, shape: ModelShape) -> Layout | None:
    processes = [head, *hosts]
    planned = _planned(processes, shape)
    if planned is None or planned.stages[0].device != head.placement.id:
        return None
    by_id = {process.placement.id: process for process in processes}
    seats = tuple(_seat(by_id[stage.device], (stage.start, stage.stop)) for stage in planned.stages[1:])
    counts = ", ".join(str(stage.layers) for stage in planned.stages)
    first = planned.stages[0]
    return layout.model_copy(
        update={"layers": (first.start, first.stop), "seats": seats, "why": f"{shape.layers} layers as {counts}"}
    )


def _planned(processes: list[_Process], shape: ModelShape) -> Plan | None:
    """The head's device first: token ids go in there."""
    spec = processes[0].placement.spec
    context = min(spec.max_model_len or _CONTEXT, shape.longest_context)
    task = Task(model=shape, devices=tuple(_offered(p, processes) for p in processes), context=context, concurrency=1)
    try:
        if spec.pipeline and spec.pipeline.layers and len(spec.pipeline.layers) == len(processes):
            made = plan_by_hand(task, spec.pipeline.layers)
        else:
            made = plan(task)
    except LayersDoNotAddUp:
        made = plan(task)
    return made if isinstance(made, Plan) else None


def _offered(process: _Process, others: list[_Process]) -> OfferedDevice:
    """Several stages on one device share it."""
    mine = (process.node.name, process.placement.devices)
    sharing = sum((other.node.name, other.placement.devices) == mine for other in others)
    kind = process.placement.devices[0].partition(":")[0]
    return OfferedDevice(name=process.placement.id, memory_bytes=process.memory_bytes // sharing, kind=kind)


def _seat(host: _Process, layers: Layers) -> Seat:
    placement = host.placement
    return Seat(
        placement=placement.id,
        epoch=placement.epoch,
        node=placement.node,
        endpoint=host.state.endpoint,
        layers=layers,
    )
