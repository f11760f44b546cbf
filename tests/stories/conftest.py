from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """`serve` and one agent, nothing deployed."""
    fleet = Fleet(tmp_path)
    try:
        fleet.start_serve()
        fleet.start_worker()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that serves the real bundled model, shared by a module's tests."""
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    try:
        fleet.start_serve()
        fleet.start_worker()
        fleet.deploy(model="smollm2", engine="layer-shard", device="cpu")
        fleet.wait_ready("smollm2", seconds=170)
        yield fleet
    finally:
        fleet.close()
