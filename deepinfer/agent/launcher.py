"""Starts engines as native processes of this machine, and finds those an earlier agent started.

Engines live in sessions of their own, so they outlive the agent. What must be known of one before it exists (launch
file, socket path, mark) is derived from its placement, so adoption needs no record.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from deepinfer.agent.engine_log import log_path, start_new_log
from deepinfer.agent.engine_process import MARK, EngineProcess, Mark, engine_processes
from deepinfer.agent.simulated_devices import DeviceLocks
from deepinfer.engine_environments.environment import Environment
from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.launch import EngineLaunch
from deepinfer.fleet.oom_score import offer
from deepinfer.fleet.own_package import with_own_package
from deepinfer.fleet.parallelism import tensor_parallel_size
from deepinfer.fleet.resources import EngineKind, Placement, looks_secret

_MODULE = ("-m", "deepinfer.engine_shim")
SHIM = (sys.executable, *_MODULE)
_PLACEMENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}")

# OpenMP's threads wait for each other by spinning. Where anything else runs on the cores, our own gateway included,
# they spin against it: one busy neighbour on two cores cost 92 % of the tokens with the default and 30 % with this. On
# an idle machine this costs a lone stream a tenth of its tokens. Read by libgomp when torch is loaded. vLLM has
# its own way (its engine's environment.py): its answers must come no later than without us.
_BRIEF_SPIN = {"GOMP_SPINCOUNT": "2000"}


def is_placement_id(text: str) -> bool:
    """Ids become folder names: nothing else may get through."""
    return _PLACEMENT_ID.fullmatch(text) is not None


@dataclass(frozen=True)
class NativeLauncher:
    """One per agent."""

    instance: str
    engines: Path  # a folder for each placement
    sockets: Path
    environment: Mapping[str, str]  # the agent's own
    shim: Sequence[str] = SHIM
    stall_seconds: float = 10.0

    @property
    def locks(self) -> DeviceLocks:
        """Of this node's simulated devices."""
        return DeviceLocks(self.engines.parent / "devices")

    def folder(self, placement_id: str) -> Path:
        return self.engines / placement_id

    def start(self, placement: Placement, model: Path | None, environment: Environment | None = None) -> EngineProcess:
        """Start its engine (in `environment`, else in deepinfer's own), or answer the one that runs already."""
        for running in self.running():
            if running.has_shim and (running.mark.placement, running.mark.epoch) == (placement.id, placement.epoch):
                return running
        mark = Mark(placement.id, placement.epoch, self.instance)
        folder, socket = self.folder(placement.id), self._socket(mark)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        launch_file = folder / "launch.json"
        write_durably(launch_file, self._launch(placement, model, socket).to_json())
        log_descriptor = start_new_log(folder)
        try:
            child = subprocess.Popen(
                [*self._shim_in(environment), str(launch_file)],
                cwd=folder,
                env=self._variables_for(placement, mark, environment),
                stdin=subprocess.DEVNULL,
                stdout=log_descriptor,
                stderr=log_descriptor,
                start_new_session=True,
            )
        finally:
            os.close(log_descriptor)
        offer(child.pid)
        return EngineProcess(mark, child.pid, psutil.Process(child.pid).create_time(), socket, folder, child)

    def running(self) -> list[EngineProcess]:
        """Every engine of this agent that has a living process, also one whose shim died and left workers behind."""
        return [self._process(mark, members) for mark, members in engine_processes(self.instance).items()]

    def _process(self, mark: Mark, members: Sequence[psutil.Process]) -> EngineProcess:
        shim = next((process for process in members if _leads_a_session(process)), None)
        process = shim or members[0]
        folder = self.folder(mark.placement)
        return EngineProcess(
            mark, process.pid, process.create_time(), self._socket(mark), folder, has_shim=shim is not None
        )

    def _socket(self, mark: Mark) -> Path:
        return self.sockets / f"{hashlib.sha256(str(mark).encode()).hexdigest()[:16]}.sock"

    def _shim_in(self, environment: Environment | None) -> Sequence[str]:
        return self.shim if environment is None else (str(environment.interpreter), "-P", *_MODULE)

    def _launch(self, placement: Placement, model: Path | None, socket: Path) -> EngineLaunch:
        spec = placement.spec
        return EngineLaunch(
            placement=placement.id,
            epoch=placement.epoch,
            engine=spec.engine,
            served_names=tuple(dict.fromkeys((placement.deployment, spec.model))),
            model_path=model,
            device="cuda" if any(device.startswith("cuda") for device in placement.devices) else "cpu",
            dtype=spec.dtype,
            quantization=spec.quantization,
            max_model_len=spec.max_model_len,
            gpu_memory_utilization=spec.gpu_memory_utilization,
            tensor_parallel_size=tensor_parallel_size(spec),
            stall_seconds=self.stall_seconds,
            device_locks=self.locks.of(placement.devices),
            engine_args=spec.engine_args,
            log=log_path(self.folder(placement.id)),
            socket=socket,
        )

    def _variables_for(self, placement: Placement, mark: Mark, environment: Environment | None) -> dict[str, str]:
        inherited = {name: value for name, value in self.environment.items() if not looks_secret(name)}
        gpus = [device.removeprefix("cuda:") for device in placement.devices if device.startswith("cuda:")]
        variables = {
            **(_BRIEF_SPIN if placement.spec.engine is EngineKind.LAYER_SHARD else {}),
            **inherited,
            **placement.spec.env,
            MARK: str(mark),
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # NVML's numbering, which the inventory uses
            "PYTHONUNBUFFERED": "1",
            "SPT_NOENV": "1",  # setproctitle, which vLLM names its processes with, else overwrites the mark
        }
        if environment is None:
            return variables
        return with_own_package(variables, self.folder(placement.id) / "package")


def _leads_a_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False
