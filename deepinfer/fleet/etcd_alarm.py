"""What etcd's alarms mean to whoever runs a fleet on it, and the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from deepinfer.fleet.errors import StoreFull

_MEANINGS = {
    "NOSPACE": str(StoreFull()),
    "CORRUPT": "etcd's members hold different data; replace the one that `etcdctl alarm list` names by a new and empty "
    "one, then `etcdctl alarm disarm`.",
}


def alarm_told(alarms: Iterable[str]) -> str:
    """ "" if there is none."""
    return " ".join(_MEANINGS.get(name, _unknown(name)) for name in sorted(set(alarms)))


def _unknown(name: str) -> str:
    return f"etcd has raised the alarm {name}; see `etcdctl alarm list`."
