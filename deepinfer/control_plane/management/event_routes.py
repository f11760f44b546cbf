"""The management API's path of what happened."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ValidationError

from deepinfer.control_plane.management.dependencies import TheMirror
from deepinfer.control_plane.management.scheduling_views import EventList, EventView
from deepinfer.fleet import keys
from deepinfer.fleet.event import Event

router = APIRouter(prefix="/v1/events", tags=["events"])

ABOUT = r"^(fleet|(deployments|nodes)/[a-z0-9._-]{1,63})$"


@router.get("")
async def list_events(
    mirror: TheMirror,
    about: Annotated[
        str | None, Query(pattern=ABOUT, description='Only of one: "deployments/NAME", "nodes/NAME", or "fleet".')
    ] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="The newest ones.")] = 100,
) -> EventList:
    """What happened in the last hour, the newest last."""
    reading = await mirror.read(keys.EVENTS if about is None else keys.events(about))
    in_time = sorted(reading.entries, key=lambda key: key.rpartition("/")[2])
    found = [event for key in in_time if (event := _event(reading.entries[key].value))]
    return EventList(data=tuple(EventView(**event.model_dump()) for event in found[-limit:]))


def _event(value: bytes) -> Event | None:
    """None for one that this version cannot read; there will be others."""
    try:
        return Event.model_validate_json(value)
    except ValidationError:
        return None
