"""A container as Docker's inspection shows it, and why it ended. Pure."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from deepinfer.agent.containers.creation import API_KEY, BRIDGE_PORT, KV_EVENTS, PORT, mark_in
from deepinfer.agent.launching import Exit, Mark


@dataclass(frozen=True, slots=True)
class SeenContainer:
    """What an agent needs of it."""

    id: str
    mark: Mark
    is_running: bool
    pid: int  # of its first process, as the node counts; 0 when it does not run
    created: float  # seconds since 1970
    endpoint: str  # host:port on the node; "" as long as it has none
    kv_events: str  # the folder of its sockets; "" without
    api_key: str = field(repr=False)
    exit_code: int
    is_out_of_memory: bool
    memory_limit: int  # bytes; 0: none


def seen_container(attributes: Mapping[str, Any]) -> SeenContainer | None:
    """None for one that is nobody's of ours."""
    settings, state = attributes["Config"], attributes["State"]
    labels = settings.get("Labels") or {}
    mark = mark_in(labels)
    if mark is None:
        return None
    return SeenContainer(
        id=attributes["Id"],
        mark=mark,
        is_running=bool(state.get("Running")),
        pid=state.get("Pid") or 0,
        created=seconds_of(attributes["Created"]),
        endpoint=_endpoint(labels, attributes.get("NetworkSettings") or {}),
        kv_events=labels.get(KV_EVENTS, ""),
        api_key=_variable(settings.get("Env") or (), API_KEY),
        exit_code=state.get("ExitCode") or 0,
        is_out_of_memory=bool(state.get("OOMKilled")),
        memory_limit=(attributes.get("HostConfig") or {}).get("Memory") or 0,
    )


def removed() -> Exit:
    return Exit(reason="ContainerRemoved: somebody removed its container", is_sure=True)


def exit_of(seen: SeenContainer, *, runtime_ended: bool) -> Exit:
    """`runtime_ended`: Docker itself went away at that time, and takes its containers with it."""
    if seen.is_out_of_memory:
        limit = (
            f"; its limit is {seen.memory_limit / (1 << 20):.0f} MiB, raise docker.memory" if seen.memory_limit else ""
        )
        return Exit(_status(seen.exit_code), f"OOMKilled: the kernel killed it for its memory{limit}", is_sure=True)
    if runtime_ended:
        reason = "RuntimeRestart: Docker was stopped, and without live-restore it ends its containers"
        return Exit(_status(seen.exit_code), reason, is_sure=True)
    return Exit(_status(seen.exit_code))


def _status(exit_code: int) -> int:
    """A signal's number plus 128, as shells and Docker write it, is a negative number here."""
    number = exit_code - 128
    return -number if number in signal.valid_signals() else exit_code


def _endpoint(labels: Mapping[str, str], network: Mapping[str, Any]) -> str:
    if PORT in labels:
        return f"127.0.0.1:{labels[PORT]}"
    published = (network.get("Ports") or {}).get(f"{BRIDGE_PORT}/tcp") or ()
    return next((f"127.0.0.1:{entry['HostPort']}" for entry in published), "")


def _variable(environment: Iterable[str], name: str) -> str:
    return next((text.partition("=")[2] for text in environment if text.startswith(f"{name}=")), "")


def seconds_of(written: str) -> float:
    """Since 1970, whole ones: Docker writes nine digits of a second, and Python reads six."""
    return datetime.fromisoformat(written[:19] + "+00:00").timestamp()
