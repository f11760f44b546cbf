"""A folder for each placement of this node: its engine's launch file and logs."""

from __future__ import annotations

import re
from pathlib import Path

_PLACEMENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}")


def is_placement_id(text: str) -> bool:
    """Ids become folder names: nothing else may get through."""
    return _PLACEMENT_ID.fullmatch(text) is not None


def launch_file(folder: Path) -> Path:
    """What the shim of the engine there was started with."""
    return folder / "launch.json"


def port_note(folder: Path) -> Path:
    """Which port the shim there listened on last; the shim's own to write."""
    return folder / "port.json"


def engine_folder(engines: Path, placement_id: str) -> Path:
    """Below the agent's folder of all engines."""
    return engines / placement_id
