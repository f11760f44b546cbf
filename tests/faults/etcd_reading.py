"""What etcd holds and what it held, read over its own HTTP: by plain sockets, and by none of the code under test."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deepinfer.control_plane.scheduler.event_log import KEPT_SECONDS
from deepinfer.fleet import keys
from deepinfer.fleet.snapshot import Snapshot, snapshot_of

_ALL = {"key": base64.b64encode(b"\0").decode(), "range_end": base64.b64encode(b"\0").decode()}
_END_OF_HISTORY = "history-read"


@dataclass(frozen=True)
class Event:
    """One change. `value` is None for a deletion."""

    revision: int
    key: str
    value: bytes | None
    lease: int


def values(endpoint: str, prefix: str = keys.FLEET) -> dict[str, bytes]:
    """Every key under the prefix."""
    found = _ask(endpoint, "/v3/kv/range", _ALL).get("kvs", ())
    readable = {_text(kv["key"]): base64.b64decode(kv.get("value", "")) for kv in found}
    return {key: value for key, value in readable.items() if key.startswith(prefix)}


def fleet_now(endpoint: str) -> Snapshot:
    return snapshot_of(values(endpoint))


def leases(endpoint: str) -> int:
    """How many there are that somebody has to keep alive; those of events end by themselves."""
    found = [lease["ID"] for lease in _ask(endpoint, "/v3/lease/leases", {}).get("leases", ())]
    asked = (_ask(endpoint, "/v3/lease/timetolive", {"ID": lease}) for lease in found)
    return sum(int(lease.get("grantedTTL", 0)) < KEPT_SECONDS for lease in asked)


def history(endpoint: str) -> list[Event]:
    """Every change since etcd's first day, in order: it keeps them all for an hour."""
    stamp = {"key": base64.b64encode(_END_OF_HISTORY.encode()).decode(), "value": _coded(str(time.time_ns()))}
    last = int(_ask(endpoint, "/v3/kv/put", stamp)["header"]["revision"])
    seen: list[Event] = []
    with _asked(endpoint, "/v3/watch", {"create_request": {**_ALL, "start_revision": "1"}}) as answer:
        while not seen or seen[-1].revision < last:
            line = json.loads(answer.readline())
            assert "result" in line and not line["result"].get("canceled"), line
            seen += (_event(event) for event in line["result"].get("events", ()))
    return [event for event in seen if event.key.startswith(keys.FLEET)]


def _event(event: dict[str, Any]) -> Event:
    kv = event["kv"]
    is_put = event.get("type", "PUT") == "PUT"
    value = base64.b64decode(kv.get("value", "")) if is_put else None
    return Event(int(kv["mod_revision"]), _text(kv["key"]), value, int(kv.get("lease", 0)))


def _ask(endpoint: str, path: str, body: dict[str, Any]) -> Any:
    with _asked(endpoint, path, body) as answer:
        return json.loads(answer.read())


@contextmanager
def _asked(endpoint: str, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(endpoint, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        yield answer
    finally:
        connection.close()


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _text(coded: str) -> str:
    return base64.b64decode(coded).decode()
