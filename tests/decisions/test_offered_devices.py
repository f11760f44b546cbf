"""Devices as people type them after `plan --device`, and as the fleet's nodes offer them."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.offered_devices import devices_of_nodes, typed_devices
from deepinfer.fleet.sizes import bytes_of, size

GB = 10**9


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["11GB,32GB"], [{"name": "device-1", "memory_bytes": 11 * GB}, {"name": "device-2", "memory_bytes": 32 * GB}]),
        (["a=11GB", "b=1GiB"], [{"name": "a", "memory_bytes": 11 * GB}, {"name": "b", "memory_bytes": 1 << 30}]),
        (
            ["a=11GB,bandwidth=400GB/s,kind=cpu,b=8G,layer-ms=1.5"],
            [
                {"name": "a", "memory_bytes": 11 * GB, "bandwidth": 400e9, "kind": "cpu"},
                {"name": "b", "memory_bytes": 8 * GB, "layer_seconds": 0.0015},
            ],
        ),
        (["node-1/cuda:0=80GB"], [{"name": "node-1/cuda:0", "memory_bytes": 80 * GB}]),
    ],
)
def test_devices_as_typed(texts: list[str], expected: list[dict[str, Any]]) -> None:
    assert typed_devices(texts) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write NAME=11GB"),
        ("a=", "write NAME=11GB"),
        ("a=much", '"a=much"'),
        ("a=0GB", "above zero"),
        ("a=-1GB", "write NAME=11GB"),
        ("a=1GB,a=2GB", "Two devices are called a"),
        ("bandwidth=1GB/s", "belongs to no device"),
        ("a=1GB,layer-ms=nan", "above zero"),
        ("a=1GB,layer-ms=inf", "above zero"),
        ("a=1GB,kind=tpu", "cuda and cpu only"),
    ],
)
def test_what_is_no_device_is_told(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        typed_devices([text])


def node(name: str, *kinds: str, state: str = "ready") -> dict[str, Any]:
    devices = [{"id": f"{kind}:{n}", "kind": kind, "memory_bytes": 8 * GB} for n, kind in enumerate(kinds)]
    return {"name": name, "state": state, "devices": devices}


def test_a_node_offers_its_accelerators_or_else_its_cpu() -> None:
    nodes = [node("a", "cpu"), node("b", "cpu", "cuda", "cuda"), node("c", "cpu", state="cordoned"), node("d", "sim")]
    assert [device["name"] for device in devices_of_nodes(nodes)] == ["a", "b/cuda:1", "b/cuda:2"]
    assert [device["kind"] for device in devices_of_nodes(nodes)] == ["cpu", "cuda", "cuda"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("11GB", 11 * GB), ("11 gb", 11 * GB), ("1.5GiB", 3 << 29), ("512M", 512 * 10**6), ("7", 7), ("2TiB", 2 << 40)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert bytes_of(text) == count


@pytest.mark.parametrize("text", ["", "GB", "1e9", "-1GB", "1PB", "1.GB", "1,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 11GB"):
        bytes_of(text)


def test_sizes_are_told() -> None:
    assert [size(None), size(2048), size(3 << 20), size(3 << 29)] == ["-", "2 KiB", "3 MiB", "1.5 GiB"]
