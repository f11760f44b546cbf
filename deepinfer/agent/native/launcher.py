"""Starts engines as native processes of this machine, and finds those an earlier agent started.

Engines live in sessions of their own, so they outlive the agent. What must be known of one before it exists (launch
file, socket path, mark) is derived from its placement, so adoption needs no record.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from deepinfer.agent.engine_folders import engine_folder, launch_file
from deepinfer.agent.engine_launch import launch_of
from deepinfer.agent.engine_log import start_new_log
from deepinfer.agent.launching import Mark, Start, Tell, socket_path
from deepinfer.agent.native.engine_process import MARK, EngineProcess, engine_processes, mark_of, spawned
from deepinfer.agent.native.memory_cgroup import OutOfMemoryKills
from deepinfer.agent.native.own_sockets import ipc_folder, sockets_of
from deepinfer.agent.simulated_devices import devices_below
from deepinfer.engine_environments.environment import Environment
from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.launch import EngineLaunch, PipelineLaunch
from deepinfer.fleet.oom_score import offer
from deepinfer.fleet.own_package import with_own_package
from deepinfer.fleet.resources import Placement
from deepinfer.fleet.spec import EngineKind, without_secrets

EnvironmentFor = Callable[[Placement], Environment | None]
"""None: deepinfer's own."""
PipelineFor = Callable[[Placement], PipelineLaunch | None]
"""None: it computes the whole model."""

_MODULE = ("-m", "deepinfer.engine_shim")
SHIM = (sys.executable, *_MODULE)

# OpenMP's threads wait for each other by spinning. Where anything else runs on the cores, our own gateway included,
# they spin against it: one busy neighbour on two cores cost 92 % of the tokens with the default and 30 % with this. On
# an idle machine this costs a lone stream a tenth of its tokens. Read by libgomp when torch is loaded. vLLM has
# its own way (its engine's environment.py): its answers must come no later than without us.
_BRIEF_SPIN = {"GOMP_SPINCOUNT": "2000"}


@dataclass(frozen=True)
class NativeLauncher:
    """One per agent."""

    instance: str
    engines: Path  # a folder for each placement
    sockets: Path
    environment: Mapping[str, str]  # the agent's own
    shim: Sequence[str] = SHIM
    stall_seconds: float = 10.0
    environment_for: EnvironmentFor = lambda _: None
    pipeline_for: PipelineFor = lambda _: None
    memory: OutOfMemoryKills = field(default_factory=OutOfMemoryKills)

    async def prepared(self, placement: Placement, tell: Tell) -> Start:
        """Nothing to wait for: what is not installed is refused."""
        environment = self.environment_for(placement)

        async def start(model: Path | None) -> EngineProcess:
            return self.start(placement, model, environment)

        return start

    async def running(self) -> list[EngineProcess]:
        """Also one whose shim died and left workers behind."""
        return self.found()

    def owner(self, process: psutil.Process) -> Mark | None:
        mark = mark_of(process)
        return mark if mark is not None and mark.instance == self.instance else None

    def start(self, placement: Placement, model: Path | None, environment: Environment | None = None) -> EngineProcess:
        """Start its engine (in `environment`, else in deepinfer's own), or answer the one that runs already."""
        for running in self.found():
            if running.is_whole and (running.mark.placement, running.mark.epoch) == (placement.id, placement.epoch):
                return running
        mark = Mark(placement.id, placement.epoch, self.instance)
        folder, socket = engine_folder(self.engines, placement.id), socket_path(self.sockets, mark)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = launch_file(folder)
        write_durably(file, self._launch(placement, model, socket).to_json())
        log_descriptor = start_new_log(folder)
        try:
            variables = {**_ipc_variables(placement, socket), **self._variables_for(placement, mark, environment)}
            child = spawned([*self._shim_in(environment), str(file)], folder, variables, log_descriptor)
        finally:
            os.close(log_descriptor)
        offer(child.pid)
        created = psutil.Process(child.pid).create_time()
        sockets = sockets_of(socket)
        return EngineProcess(mark, child.pid, created, socket, folder, child, sockets=sockets, memory=self.memory)

    def found(self) -> list[EngineProcess]:
        """Every engine of this agent that has a living process."""
        return [self._process(mark, members) for mark, members in engine_processes(self.instance).items()]

    def _process(self, mark: Mark, members: Sequence[psutil.Process]) -> EngineProcess:
        shim = next((process for process in members if _leads_a_session(process)), None)
        process = shim or members[0]
        folder, socket = engine_folder(self.engines, mark.placement), socket_path(self.sockets, mark)
        return EngineProcess(
            mark,
            process.pid,
            process.create_time(),
            socket,
            folder,
            sockets=sockets_of(socket),
            is_whole=shim is not None,
            memory=self.memory,
        )

    def _shim_in(self, environment: Environment | None) -> Sequence[str]:
        return self.shim if environment is None else (str(environment.interpreter), "-P", *_MODULE)

    def _launch(self, placement: Placement, model: Path | None, socket: Path) -> EngineLaunch:
        folder = engine_folder(self.engines, placement.id)
        launch = launch_of(
            placement,
            model,
            socket=socket,
            folder=folder,
            stall_seconds=self.stall_seconds,
            pipeline=self.pipeline_for(placement),
        )
        locks = devices_below(self.engines.parent).of(placement.devices)
        return launch.model_copy(update={"device_locks": locks})

    def _variables_for(self, placement: Placement, mark: Mark, environment: Environment | None) -> dict[str, str]:
        gpus = [device.removeprefix("cuda:") for device in placement.devices if device.startswith("cuda:")]
        variables = {
            **(_BRIEF_SPIN if placement.spec.engine is EngineKind.LAYER_SHARD else {}),
            **without_secrets(self.environment),
            **placement.spec.env,
            MARK: str(mark),
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's numbering, which the inventory uses
            "PYTHONUNBUFFERED": "1",
            "SPT_NOENV": "1",  # setproctitle, which vLLM names its processes with, else overwrites the mark
        }
        if environment is None:
            return variables
        return with_own_package(variables, engine_folder(self.engines, placement.id) / "package")


def _ipc_variables(placement: Placement, socket: Path) -> dict[str, str]:
    """Their folder is made; the user's own value wins."""
    folder = ipc_folder(socket) if placement.spec.engine is EngineKind.VLLM else None
    if folder is None:
        return {}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {"VLLM_RPC_BASE_PATH": str(folder)}


def _leads_a_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False
