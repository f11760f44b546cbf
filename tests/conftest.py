"""A real etcd for every test that asks. Without one, tests that need it are errors, never skipped."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deepinfer.fleet.store import EtcdStore
from tests.etcd_process import EtcdProcess


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of one etcd for the whole run."""
    server = EtcdProcess(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server.endpoint
    server.kill()


@pytest.fixture
async def store(etcd: str) -> AsyncIterator[EtcdStore]:
    """A store that is empty at first."""
    async with EtcdStore.connect([etcd]) as store:
        found = await store.read("")
        await store.commit(dict.fromkeys(found.entries))
        yield store


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdProcess]:
    """An etcd for one test alone, to be killed, paused and started again."""
    server = EtcdProcess(tmp_path)
    server.start()
    yield server
    server.kill()
