"""The image a container is made of: the one that is there, or fetched, with progress."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from docker.errors import APIError, ImageNotFound, NotFound
from docker.utils import parse_repository_tag

from deepinfer.agent.containers.daemon import Daemon
from deepinfer.agent.containers.failures import DiskFull, ImageMissing
from deepinfer.agent.launching import Tell
from deepinfer.fleet.spec import Pull

_SILENCE_SECONDS = 300  # of a registry, between two words


@dataclass(frozen=True, slots=True)
class Image:
    """What is run: a tag may move meanwhile."""

    id: str
    entrypoint: tuple[str, ...]


async def image_of(daemon: Daemon, reference: str, pull: Pull, tell: Tell) -> Image:
    """Raises `ImageMissing`, `DiskFull`, and `RuntimeUnreachable`."""
    found = None if pull is Pull.ALWAYS else await _local(daemon, reference)
    if found is not None:
        return found
    if pull is Pull.NEVER:
        raise ImageMissing(f"image {reference} is not on this node, and docker.pull is never; `docker pull` it there.")
    tell(f"pulling {reference}")
    await _pulled(daemon, reference, tell)
    found = await _local(daemon, reference)
    if found is None:
        raise ImageMissing(f"image {reference} was pulled and is not there; somebody removed it.")
    return found


async def _local(daemon: Daemon, reference: str) -> Image | None:
    try:
        found = await daemon.ask(lambda client: client.images.get(reference))
    except ImageNotFound:
        return None
    return Image(str(found.id), tuple(found.attrs["Config"].get("Entrypoint") or ()))


async def _pulled(daemon: Daemon, reference: str, tell: Tell) -> None:
    loop = asyncio.get_running_loop()
    given_up = threading.Event()

    def report(text: str) -> None:
        loop.call_soon_threadsafe(tell, text)

    try:
        await daemon.ask(lambda _: _pull(daemon, reference, report, given_up), None)
    except APIError as error:
        raise _failure(reference, str(error.explanation or error)) from error
    finally:
        given_up.set()


def _pull(daemon: Daemon, reference: str, report: Callable[[str], None], given_up: threading.Event) -> None:
    """Blocks. Docker stops fetching when nobody listens any more."""
    client = daemon.connect(_SILENCE_SECONDS)
    repository, tag = parse_repository_tag(reference)
    layers = Layers()
    try:
        for word in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if given_up.is_set():
                return
            if "error" in word:
                raise _failure(reference, word["error"])
            if layers.learn(word):
                report(f"pulling {reference}: {layers}")
    except NotFound as error:
        raise _failure(reference, str(error.explanation)) from error
    finally:
        client.close()


class Layers:
    """How far a pull is; the registry tells sizes layer by layer as it goes."""

    def __init__(self) -> None:
        self._bytes: dict[str, tuple[int, int]] = {}
        self._done: set[str] = set()
        self._told = str(self)

    def learn(self, word: dict[str, Any]) -> bool:
        """Whether there is something new to say."""
        layer, status, detail = word.get("id", ""), word.get("status", ""), word.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._bytes[layer] = detail["current"], detail["total"]
        elif status in ("Pull complete", "Already exists"):
            self._done.add(layer)
            self._bytes[layer] = (self._bytes.get(layer, (0, 0))[1],) * 2
        elif status in ("Pulling fs layer", "Waiting"):
            self._bytes.setdefault(layer, (0, 0))
        before, self._told = self._told, str(self)
        return before != self._told

    def __str__(self) -> str:
        fetched, total = (sum(sizes[at] for sizes in self._bytes.values()) for at in (0, 1))
        return f"{_size(fetched)} of {_size(total)}, {len(self._done)} of {len(self._bytes)} layers"


def _failure(reference: str, words: str) -> ImageMissing | DiskFull:
    if DiskFull.meant_by(words):
        return DiskFull(f"image {reference} does not fit: {words}")
    hint = "check its name, `docker login` on that node for a private registry, or build it there"
    return ImageMissing(f"image {reference} is not on this node and cannot be pulled: {words.rstrip('.')}; {hint}.")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
