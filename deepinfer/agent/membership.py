"""Which fleet this node belongs to: noted in its state folder when it first joins, so that a store that was wiped or
exchanged is not obeyed. Until a person confirms it, engines run on and nothing is started or stopped by its word."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.errors import AnotherFleet
from deepinfer.fleet.identity import doubt_about, told_identity

_ID = re.compile(r"[0-9a-f]{16}")

log = logging.getLogger(__name__)


class Membership:
    """`changed` is set, and replaced by another event, whenever `fleet` or `trouble` becomes another."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "fleet"
        self.fleet = _noted(self._file)  # "" before it ever joined one
        self.trouble = ""
        self.changed = asyncio.Event()

    def check(self, identity: bytes | None) -> None:
        """Join, or raise `AnotherFleet`: the store that says this of itself is not to be obeyed."""
        trouble = doubt_about(identity, self.fleet)
        found = None if trouble else told_identity(identity)
        fleet = found.id if found else self.fleet
        if fleet != self.fleet:
            log.info("this node belongs to fleet %s now", fleet)
            self._note(fleet)
        self._become(fleet, trouble)
        if trouble:
            raise AnotherFleet(trouble)

    def _become(self, fleet: str, trouble: str) -> None:
        if (fleet, trouble) == (self.fleet, self.trouble):
            return
        self.fleet, self.trouble = fleet, trouble
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def _note(self, fleet: str) -> None:
        try:
            write_durably(self._file, f"{fleet}\n".encode())
        except OSError as error:  # such as a full disk: this run knows it all the same
            log.warning("%s cannot be written (%s); the next worker here will join any fleet", self._file, error)


def _noted(file: Path) -> str:
    if not file.exists():
        return ""
    fleet = file.read_text(errors="replace").strip()
    if not _ID.fullmatch(fleet):
        log.warning("%s is damaged; this node joins whatever fleet it finds", file)
        return ""
    return fleet
