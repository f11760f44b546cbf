"""A node that runs containers, for the contracts of their launcher."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.docker_engine import DockerEngine
from tests.program_nodes import ContainerNode, container_node


@pytest.fixture
async def node(
    tmp_path: Path, docker_engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ContainerNode]:
    monkeypatch.setattr("deepinfer.agent.containers.launcher._BETWEEN_STARTS_SECONDS", 0)
    async with container_node(tmp_path, docker_engine) as node:
        yield node
