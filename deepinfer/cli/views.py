"""What the management API's answers ("views") say to a person. Pure; a view stays the plain JSON object it came as."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from deepinfer.fleet.sizes import size

View = dict[str, Any]


class Outcome(Enum):
    """Whether waiting for a deployment makes sense any longer."""

    PENDING = "pending"
    READY = "ready"
    REFUSED = "refused"  # final only if it stays so: a node may just be about to join
    FAILED = "failed"


@dataclass(frozen=True)
class Progress:
    """How far a deployment is, and the words for it."""

    outcome: Outcome
    sentence: str


def progress_of(deployment: View) -> Progress:
    name, status = deployment["name"], deployment["status"]
    said = status["message"] or status["phase"]
    if status.get("outcome") == "rolled-back" and status["phase"] != "stopped":
        return Progress(Outcome.FAILED, f"{name} is not as asked for: {said}")
    match status["phase"]:
        case "ready":
            return Progress(Outcome.READY, f"{name} is ready ({status['ready']} of {status['wanted']} replicas)")
        case "stopped":
            return Progress(Outcome.READY, f"{name} is stopped: {said}")
        case "failed":
            return Progress(Outcome.FAILED, f"{name} failed: {said}")
        case "refused":
            return Progress(Outcome.REFUSED, f"{name} has no place: {said}")
    return Progress(Outcome.PENDING, f"{name}: {_doing(deployment)}")


def _doing(deployment: View) -> str:
    """The phase and message of the first replica that is on its way."""
    status = deployment["status"]
    waiting = [r for r in replicas_of(deployment) if r["phase"] != "ready" and r["intent"] != "drain"]
    if not waiting or not waiting[0]["phase"]:
        return str(status["message"] or status["phase"])
    first = waiting[0]
    doing = f"{first['phase']}: {first['message']}" if first["message"] else str(first["phase"])
    return doing if status["wanted"] == 1 else f"{status['ready']} of {status['wanted']} ready; {first['id']} {doing}"


def replicas_of(deployment: View) -> list[View]:
    return list(deployment["replica_list"])


DEPLOYMENT_COLUMNS = ("NAME", "MODEL", "ENGINE", "READY", "PHASE", "ROLE", "MESSAGE")
REPLICA_COLUMNS = (
    *("ID", "DEPLOYMENT", "NODE", "DEVICES", "PHASE", "RESTARTS", "MEMORY", "ENDPOINT", "ROLE", "MESSAGE"),
)
NODE_COLUMNS = ("NAME", "STATE", "DEVICES", "ENGINES", "CONTAINERS", "REPLICAS", "VERSION", "MESSAGE")
CONDITION_COLUMNS = ("CONDITION", "HOLDS", "SINCE", "REASON", "MESSAGE")


def deployment_row(view: View) -> list[str]:
    status = view["status"]
    ready = f"{status['ready']}/{status['wanted']}"
    shown = [view["name"], view["model"], view["engine"], ready, status["phase"]]
    return [*shown, _role(view), status["message"]]


def replica_row(view: View) -> list[str]:
    """What is to end is not called ready: its agent may not have heard of it, or may never."""
    phase = "draining" if view["intent"] == "drain" else view["phase"] or "pending"
    where = [view["id"], view["deployment"], view["node"], ",".join(view["devices"])]
    seen = [phase, str(view["restarts"]), size(view["memory_bytes"]), view["endpoint"] or "-", _role(view)]
    return [*where, *seen, "; ".join(filter(None, [view["why"], _unverified(view), view["message"]]))]


def _role(view: View) -> str:
    """Of a server that knows of roles."""
    return str(view.get("role", "both"))


def _unverified(view: View) -> str:
    """Of a replica whose agent is silent: its engine may serve on, or be gone."""
    if view["node_alive"]:
        return ""
    return f"not connected, last told: {view['phase']}" if view["phase"] else "not connected"


def node_row(view: View) -> list[str]:
    devices = ", ".join(f"{d['id']} {size(d['memory_bytes'])}" for d in view["devices"])
    return [
        view["name"],
        view["state"],
        devices or "-",
        ", ".join(map(_engine, view["engines"])) or "-",
        _containers(view["containers"]),
        str(len(view["replicas"])),
        view["version"] or "-",
        _node_message(view),
    ]


def condition_row(view: View) -> list[str]:
    return [view["aspect"], "yes" if view["holds"] else "no", view["since"], view["reason"], view["message"]]


def _node_message(view: View) -> str:
    absence = view["absence"] or {}
    away = f"not connected since {absence['since']}" if absence else ""
    return "; ".join(filter(None, [away, absence.get("held"), *view["pressure"], view["fleet_trouble"]]))


def _engine(view: View) -> str:
    """deepinfer's own have its version, which the table shows anyway."""
    return view["kind"] if view["accelerator"] == "any" else f"{view['kind']} {view['version']} {view['accelerator']}"


def _containers(view: View | None) -> str:
    """What hinders goes before what warns."""
    if view is None:
        return "-"
    return "; ".join(filter(None, [view["trouble"] or view["version"], view["warning"]]))
