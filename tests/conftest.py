"""A real etcd, vLLM and Docker engine for every test that asks. Where one cannot be had, it errs and never skips."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deepinfer.engine_environments.environment import Environment
from deepinfer.fleet.store import EtcdStore
from tests.docker_engine import DockerEngine
from tests.etcd_process import EtcdProcess
from tests.vllm_environment import vllm_environment

INSTALLING_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first installs the engine, which takes minutes."""
    for item in items:
        if "vllm_engine" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(INSTALLING_SECONDS))


@pytest.fixture(scope="session")
def vllm_engine() -> Environment:
    """An installed vLLM for the CPU, where every worker that the tests start finds it."""
    return vllm_environment()


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """One Docker engine for the whole run. A test that kills or pauses one makes its own."""
    with DockerEngine() as engine:
        yield engine


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """A shell's background job ignores it, and so would every process that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
