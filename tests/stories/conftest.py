from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import avx2_torch
from tests.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """`serve` and one agent, nothing deployed."""
    with Fleet(tmp_path).running() as fleet:
        yield fleet


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet that serves the real bundled model, shared by a module's tests."""
    with Fleet(tmp_path_factory.mktemp("fleet")).running() as fleet:
        fleet.deploy(model="smollm2", engine="layer-shard", device="cpu", env=avx2_torch.ENV)
        fleet.wait_ready("smollm2", seconds=170)
        yield fleet
