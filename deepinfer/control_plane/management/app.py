"""The management API as an ASGI application: everything that is not the data path."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from deepinfer.control_plane.management import (
    alias_routes,
    event_routes,
    fleet_routes,
    key_routes,
    model_routes,
    node_routes,
    rollout_routes,
    routes,
)
from deepinfer.control_plane.management.aside import Aside
from deepinfer.control_plane.management.document import ABOUT, TAGS, complete_document, operation_id
from deepinfer.control_plane.management.refused_requests import tell_failures
from deepinfer.control_plane.management.staleness import StaleMark
from deepinfer.control_plane.scheduler.scheduler import never_looked
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.mirror import Mirror


def management_app(
    mirror: Callable[[], Mirror], answering: Callable[[], frozenset[tuple[str, int]] | None] = never_looked
) -> FastAPI:
    """`mirror` gives the view of the store, or raises `StoreUnavailable` while there is none: then all answers are 503.
    `answering` is what the scheduler has as well, so that both foresee the same.

    Bodies are JSON whatever their Content-Type. Who may ask, and which web pages, is seen to before (`FrontDoor`).
    """
    app = FastAPIOffline(  # its /docs loads nothing from elsewhere: a fleet may have no way out
        static_url="/docs/assets",
        title="deepinfer management API",
        description=ABOUT,
        openapi_tags=TAGS,
        dependencies=[
            Depends(HTTPBearer(auto_error=False, description="An admin's API key, where keys are required."))
        ],
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    app.state.mirror = mirror
    app.state.answering = answering
    app.state.aside = Aside()
    for part in (
        routes,
        rollout_routes,
        alias_routes,
        node_routes,
        event_routes,
        fleet_routes,
        model_routes,
        key_routes,
    ):
        app.include_router(part.router)
    app.add_middleware(StaleMark, stale_since=lambda: _stale_since(mirror))
    tell_failures(app)
    complete_document(app)
    return app


def _stale_since(mirror: Callable[[], Mirror]) -> datetime | None:
    try:
        return mirror().stale_since
    except StoreUnavailable:
        return None  # nothing is known that could be stale
