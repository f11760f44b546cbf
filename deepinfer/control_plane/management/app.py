"""The management API as an ASGI application: everything that is not the data path."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Depends, FastAPI

from deepinfer.control_plane.management.refused_requests import tell_failures
from deepinfer.control_plane.management.routes import router
from deepinfer.control_plane.management.same_origin import refuse_foreign_origins
from deepinfer.fleet.store import EtcdStore

_ABOUT = """What should run (deployments), what runs (replicas), and where (nodes).

Errors have OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. The OpenAI endpoints are at `/v1/models`,
`/v1/chat/completions` and so on, on the same port."""


def management_app(store: Callable[[], EtcdStore]) -> FastAPI:
    """`store` gives the store, or raises `StoreUnavailable` while there is none yet: then every answer is a 503.

    Bodies are JSON whatever their Content-Type; web pages of other origins may not change anything.
    """
    app = FastAPI(
        title="deepinfer management API",
        description=_ABOUT,
        dependencies=[Depends(refuse_foreign_origins)],
        redoc_url=None,
    )
    app.state.store = store
    app.include_router(router)
    tell_failures(app)
    return app
