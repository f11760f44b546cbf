"""The devices that `plan` is asked to plan for: as typed, or those of the fleet.

"11GB,32GB" are two devices without a name; "a=11GB,bandwidth=400GB/s,b=32GB" are two with one, and bandwidth tells more
of the device before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any, TypeVar

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.views import View
from deepinfer.fleet.sizes import bytes_of

HOW_TO_WRITE = "write NAME=11GB, with ,bandwidth=400GB/s or ,layer-ms=1.5 or ,kind=cpu after it; or just 11GB,32GB"
_TOLD = ("bandwidth", "layer-ms", "kind")  # of the device before
_COMPUTED_ON = ("cuda", "cpu")  # what layer-shard runs on, best first

Fields = dict[str, Any]
N = TypeVar("N", int, float)


def typed_devices(texts: Iterable[str]) -> list[Fields]:
    """The fields of each `OfferedDevice`."""
    found: list[Fields] = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        key, separator, value = part.partition("=")
        if separator and key in _TOLD:
            if not found:
                raise InvalidInput(f'"{part}" belongs to no device; {HOW_TO_WRITE}.')
            found[-1] |= _told(key, value, part)
        else:
            name = key if separator else f"device-{len(found) + 1}"
            found.append({"name": name, "memory_bytes": _number(value if separator else key, part, bytes_of)})
    names = [device["name"] for device in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInput(f"Two devices are called {twice}; give each a name of its own.")
    return found


def devices_of_nodes(nodes: Sequence[View]) -> list[Fields]:
    """A node's accelerators, or its CPU where it has none. Only of nodes that take something new."""
    found: list[Fields] = []
    for node in nodes:
        kinds = [kind for kind in _COMPUTED_ON if any(device["kind"] == kind for device in node["devices"])]
        if node["state"] != "ready" or not kinds:
            continue
        for device in (device for device in node["devices"] if device["kind"] == kinds[0]):
            name = node["name"] if kinds[0] == "cpu" else f"{node['name']}/{device['id']}"
            found.append({"name": name, "memory_bytes": device["memory_bytes"], "kind": kinds[0]})
    return found


def _told(key: str, value: str, part: str) -> Fields:
    if key == "kind":
        if value not in _COMPUTED_ON:
            raise InvalidInput(f'"{part}": layer-shard computes on {" and ".join(_COMPUTED_ON)} only.')
        return {"kind": value}
    if key == "bandwidth":
        return {"bandwidth": float(_number(value.removesuffix("/s"), part, bytes_of))}
    return {"layer_seconds": _number(value, part, float) / 1000}


def _number(text: str, part: str, read: Callable[[str], N]) -> N:
    try:
        number = read(text)
    except ValueError:
        number = read("0")
    if not 0 < number < inf:
        raise InvalidInput(f'"{part}" says no size or number above zero; {HOW_TO_WRITE}.')
    return number
