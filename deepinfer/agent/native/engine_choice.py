"""Which of this node's engines runs a placement: asked before every start, of what is installed at that moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from deepinfer.engine_environments.choice import NoEngine, chosen_engine
from deepinfer.engine_environments.compatibility import lines
from deepinfer.engine_environments.environment import FLAGS, Environment, environments
from deepinfer.engine_environments.flags import check_flags
from deepinfer.engine_environments.installed import installed_engines
from deepinfer.fleet.errors import EngineNotInstalled, EngineWillNotStart, InvalidRequest
from deepinfer.fleet.resources import ANY_ACCELERATOR, Device, InstalledEngine, Placement


@dataclass(frozen=True)
class EnginesHere:
    """The environments below `engines`, for the devices of this node."""

    engines: Path
    devices: tuple[Device, ...]

    def environment_for(self, placement: Placement) -> Environment | None:
        """None: it runs in deepinfer's own. Raises `EngineNotInstalled`, or `EngineWillNotStart` for a spec that the
        engine cannot or does not want to follow."""
        spec = placement.spec
        devices = [device for device in self.devices if device.id in placement.devices]
        chosen = chosen_engine(spec, installed_engines(self.engines), devices, lines())
        if isinstance(chosen, NoEngine):
            problem = EngineWillNotStart if chosen.refused_by_rule else EngineNotInstalled
            raise problem(f"{placement.node} {chosen.reason}" if chosen.refused_by_rule else f"{chosen.reason}.")
        if chosen.accelerator == ANY_ACCELERATOR:
            return None
        environment = self._environment_of(chosen)
        try:
            check_flags(spec.engine_args, environment.flags())
        except InvalidRequest as error:
            raise EngineWillNotStart(str(error)) from error
        except (OSError, ValidationError) as error:
            again = f"`deepinfer engine remove {environment.name}` and install it again on that node"
            raise EngineNotInstalled(f"{environment.folder / FLAGS} cannot be read; {again}.") from error
        return environment

    def _environment_of(self, chosen: InstalledEngine) -> Environment:
        for environment in environments(self.engines):
            if environment.record.engine == chosen:
                return environment
        raise EngineNotInstalled(f"{chosen.kind} {chosen.version} has just been removed from this node.")
