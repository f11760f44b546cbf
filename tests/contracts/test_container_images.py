"""Where a container's image comes from: the node, or a real registry; and how that fails."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.failures import DiskFull, ImageMissing
from deepinfer.agent.containers.image import image_of
from deepinfer.fleet.spec import Pull
from tests.docker_engine import DockerEngine
from tests.docker_images import exits_image, sim_image
from tests.docker_registry import DockerRegistry, docker_registry
from tests.fleet import free_port
from tests.program_nodes import tell


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DockerRegistry]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="module")
def pushed(docker_engine: DockerEngine, registry: DockerRegistry) -> str:
    return registry.push(docker_engine, sim_image(docker_engine))


@pytest.fixture
def other_engine(tmp_path: Path) -> Iterator[DockerEngine]:
    """Has no image."""
    with DockerEngine() as engine:
        yield engine


@pytest.fixture
async def daemon(other_engine: DockerEngine) -> AsyncIterator[Daemon]:
    daemon = Daemon({"DOCKER_HOST": other_engine.host}, "0" * 16)
    async with daemon.followed():
        await daemon.heard_of()
        yield daemon


async def test_an_image_that_is_not_there_is_pulled_with_progress(
    daemon: Daemon, other_engine: DockerEngine, pushed: str
) -> None:
    told: list[str] = []
    found = await image_of(daemon, pushed, Pull.MISSING, lambda message, **_: told.append(message))
    assert found.id == other_engine.docker.images.get(pushed).id
    assert found.entrypoint == ("vllm", "serve")
    assert told[0] == f"pulling {pushed}"
    assert len(told) > 2 and told[-1].endswith(" MB, 1 of 1 layers")


async def test_an_image_that_is_there_is_not_asked_for(daemon: Daemon, other_engine: DockerEngine, pushed: str) -> None:
    told: list[str] = []
    other_engine.docker.images.pull(pushed)
    await image_of(daemon, pushed, Pull.MISSING, lambda message, **_: told.append(message))
    await image_of(daemon, pushed, Pull.NEVER, lambda message, **_: told.append(message))
    assert told == []


async def test_pull_always_gets_what_the_tag_means_now(
    daemon: Daemon, docker_engine: DockerEngine, other_engine: DockerEngine, registry: DockerRegistry, pushed: str
) -> None:
    moving = f"{registry.address}/moving:1"
    for source in (sim_image(docker_engine), exits_image(docker_engine)):
        docker_engine.docker.images.get(source).tag(f"{registry.address}/moving", "1")
        docker_engine.docker.images.push(f"{registry.address}/moving", "1")
        found = await image_of(daemon, moving, Pull.ALWAYS, tell)
        assert found.id == docker_engine.docker.images.get(source).id
    docker_engine.docker.images.remove(moving)


@pytest.mark.parametrize("reference", ["{registry}/sim-vllm:2", "{registry}/no-such-image:1", "{registry}/x@{digest}"])
async def test_what_the_registry_has_not_is_missing(daemon: Daemon, registry: DockerRegistry, reference: str) -> None:
    reference = reference.format(registry=registry.address, digest="sha256:" + "0" * 64)
    with pytest.raises(ImageMissing) as failed:
        await image_of(daemon, reference, Pull.MISSING, tell)
    assert str(failed.value).startswith(f"ImageMissing: image {reference} is not on this node and cannot be pulled: ")
    assert "manifest" in str(failed.value) and "unknown" in str(failed.value)
    assert "docker login" in str(failed.value)


async def test_pull_never_does_not_ask_the_registry(daemon: Daemon, pushed: str) -> None:
    with pytest.raises(ImageMissing, match=r"docker\.pull is never; `docker pull` it there"):
        await image_of(daemon, pushed, Pull.NEVER, tell)


async def test_a_registry_that_is_not_there_is_told(daemon: Daemon) -> None:
    with pytest.raises(ImageMissing, match="connection refused"):
        await image_of(daemon, f"127.0.0.1:{free_port()}/sim-vllm:1", Pull.MISSING, tell)


class SmallDisk(DockerEngine):
    """A Docker engine whose images have a disk of 48 MiB."""

    def start(self) -> None:
        data = Path(self._settings(False)["data-root"])
        data.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "deepinfer-test", str(data)], check=True)
        super().start()


async def test_a_disk_that_is_too_small_for_the_image_is_told(pushed: str) -> None:
    with SmallDisk() as small:
        daemon = Daemon({"DOCKER_HOST": small.host}, "0" * 16)
        async with daemon.followed():
            await daemon.heard_of()
            with pytest.raises(DiskFull) as failed:
                await image_of(daemon, pushed, Pull.MISSING, tell)
    assert str(failed.value).startswith(f"DiskFull: image {pushed} does not fit: ")
    assert "no space left on device" in str(failed.value) and "docker system prune" in str(failed.value)
