"""The placements read last, noted in the agent's state folder: what the next agent here goes by until it can read.

Specs may hold secrets, so only the owner can read it. A note that is damaged, or another fleet's, is no note.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from pydantic import ValidationError

from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.resource import Record
from deepinfer.fleet.resources import Placement

log = logging.getLogger(__name__)


class _Note(Record):
    fleet: str
    placements: tuple[Placement, ...]


class PlacementNote:
    """One node's."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "placements.json"
        self._last: _Note | None = None  # that was written
        self._is_late = False  # what was read last could not be written

    def write(self, fleet: str, placements: Collection[Placement]) -> None:
        note = _Note(fleet=fleet, placements=tuple(placements))
        if note == self._last:
            return
        try:
            write_durably(self._file, note.to_json())
        except OSError as error:  # such as a full disk: an older note does no harm, for what it lacks is left alone
            if not self._is_late:
                log.warning("%s stays as it was until there is room: %s", self._file, error)
            self._is_late = True
        else:
            self._last, self._is_late = note, False

    def read(self, fleet: str) -> tuple[Placement, ...] | None:
        """None if nothing of this fleet is noted."""
        try:
            note = _Note.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("%s cannot be understood and is not gone by: %s", self._file, error)
            return None
        return note.placements if note.fleet == fleet else None
