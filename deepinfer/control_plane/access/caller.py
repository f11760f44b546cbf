"""Who asks. A value made of the key that was shown; it goes with the request as part of its ASGI scope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepinfer.control_plane.openai_errors import AdminOnly, ModelNotAllowed
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.fleet.api_key import ApiKey, KeyLimits, Role

SCOPE_KEY = "deepinfer.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """Limits and priority are what its key says; they are counted and weighed where requests wait."""

    id: str  # of the key; public
    name: str
    role: Role = Role.USER
    models: frozenset[str] = frozenset()  # empty: all
    limits: KeyLimits | None = None  # None: none
    priority: int = 0

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


ANONYMOUS = Caller("", "anonymous", Role.ADMIN)
"""Everybody, where no keys are required."""
NOBODY = Caller("", "nobody")
"""Who shows no key where keys are required, on the few paths that want none."""
LOCAL_ADMIN = Caller("local", "local-admin", Role.ADMIN)
"""Who can read this server's admin token."""


def caller_with(key: ApiKey) -> Caller:
    limits = None if key.limits == KeyLimits() else key.limits
    return Caller(key.id, key.name, key.role, frozenset(key.models), limits, key.priority)


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Nothing is served behind no front door: without a caller this fails."""
    caller: Caller = scope[SCOPE_KEY]
    return caller


def require(role: Role, caller: Caller) -> None:
    """Raises `AdminOnly`."""
    if role is Role.ADMIN and caller.role is not Role.ADMIN:
        raise AdminOnly(f"The API key {caller.name} is for requests to models; this path wants an admin's.")


def refuse_other_models(caller: Caller, model: str, call: EngineCall) -> None:
    """Raises `ModelNotAllowed`, also for a body that nobody read: its "model" may name another one of that engine's."""
    if not caller.models:
        return
    if model not in caller.models:
        raise ModelNotAllowed(_not_allowed(caller, model))
    if call.body and b"model=" in call.query:
        raise ModelNotAllowed(f"The API key {caller.name} is limited to models: name the model in the body alone.")


def _not_allowed(caller: Caller, model: str) -> str:
    return f"The API key {caller.name} may not use the model '{model[:200]}'; GET /v1/models lists what it may."
