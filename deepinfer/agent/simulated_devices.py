"""Devices that are only files, for fleets without hardware: a simulated engine holds one by locking its file.

Linux: /proc/locks says who holds a lock, whoever it is.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from deepinfer.fleet.resources import Device

_PREFIX = "sim:"
_MEMORY_BYTES = 16 << 30


def simulated_devices(count: int) -> tuple[Device, ...]:
    """What a node with so many offers."""
    return tuple(
        Device(id=f"{_PREFIX}{n}", kind="sim", name="simulated", memory_bytes=_MEMORY_BYTES) for n in range(count)
    )


@dataclass(frozen=True)
class DeviceLocks:
    """The files of one node's simulated devices."""

    folder: Path

    def of(self, devices: tuple[str, ...]) -> tuple[Path, ...]:
        """Made when first asked for."""
        names = [device.replace(":", "-") for device in devices if device.startswith(_PREFIX)]
        if names:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tuple(self.folder / name for name in names)

    def holder(self, device: str) -> int | None:
        """The process that has locked it."""
        (file,) = self.of((device,))
        return _locker(file) if file.exists() else None


def devices_below(node: Path) -> DeviceLocks:
    """Of the node that keeps its state there."""
    return DeviceLocks(node / "devices")


def _locker(file: Path) -> int | None:
    found = file.stat()
    number = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()  # "1: FLOCK ADVISORY WRITE 1234 fe:00:5678 0 EOF"; "->" marks one that waits
        if "->" not in fields and fields[1] == "FLOCK" and fields[5] == number:
            return int(fields[4])
    return None
