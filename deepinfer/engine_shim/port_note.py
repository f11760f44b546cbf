"""The port that gateways know an engine by, noted beside its launch file: its next shim listens there again.

While the store is away nobody could tell gateways of another one. An engine of another epoch is another engine.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field, ValidationError

from deepinfer.fleet.durable_file import write_durably
from deepinfer.fleet.resource import Resource

log = logging.getLogger(__name__)


class PortNote(Resource):
    epoch: int
    port: int = Field(ge=0, le=65535)


def noted_port(file: Path | None, epoch: int) -> int:
    """0: none is noted, so any port is as good."""
    if file is None or not file.exists():
        return 0
    try:
        note = PortNote.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        log.warning("%s is not used (%s); gateways learn the port from the store", file, error)
        return 0
    return note.port if note.epoch == epoch else 0


def note_port(file: Path | None, epoch: int, port: int) -> None:
    """A full disk keeps no engine from starting."""
    if file is None:
        return
    try:
        write_durably(file, PortNote(epoch=epoch, port=port).to_json())
    except OSError as error:
        log.warning("%s cannot be written (%s); the next shim here listens on another port", file, error)
