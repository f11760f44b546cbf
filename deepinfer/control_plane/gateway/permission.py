"""What a path wants of who asks. Pure, by the scope's own path; what is not named here wants an admin.

anybody   /health and /ready, answered here (GET, HEAD)
any key   what is about answers of models (RELAYED_PATHS and below), and the list of models
an admin  the rest: the management API, /docs, /metrics; and any other path of an engine's, for it may be about the
          engine itself, such as emptying its cache
"""

from __future__ import annotations

import re

from deepinfer.control_plane.gateway.relayed_paths import RELAYED_PATHS
from deepinfer.fleet.api_key import Role

OPEN = frozenset(("/health", "/ready"))
READING = frozenset(("GET", "HEAD", "OPTIONS"))
_ABOUT_ANSWERS = re.compile(
    f"(?:{'|'.join(map(re.escape, sorted(RELAYED_PATHS)))}|/v1/audio|/v1/images)"
    + r"(?:/[A-Za-z0-9_:-][A-Za-z0-9_.:-]*)+"
)


def wanted_role(method: str, path: str, *, asks_engine: bool) -> Role | None:
    """None: anybody may. `asks_engine`: the query names a model, so its engine answers, whatever the path is."""
    if path in RELAYED_PATHS:
        return Role.USER
    if path in OPEN and method in READING and not asks_engine:
        return None
    if (path == "/v1/models" or path.startswith("/v1/models/")) and not asks_engine:
        return Role.USER
    return Role.USER if _ABOUT_ANSWERS.fullmatch(path) else Role.ADMIN
