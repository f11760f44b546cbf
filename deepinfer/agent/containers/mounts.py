"""Which folders of the node a container gets to see."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from deepinfer.agent.containers.failures import MountRefused


def check_mounts(mounts: Iterable[str], allowed: tuple[Path, ...], daemon_address: str) -> None:
    """Only what the worker's configuration allows, and never Docker's own socket: whoever has it has the node.

    Raises `MountRefused`.
    """
    for text in mounts:
        source = Path(os.path.realpath(text.partition(":")[0]))
        refuse_dockers_socket(source, daemon_address)
        if not any(source.is_relative_to(os.path.realpath(folder)) for folder in allowed):
            known = ", ".join(map(str, allowed)) or "none"
            raise MountRefused(
                f"{source} is below no folder that this node lets containers mount ({known});"
                " container_mounts in its worker's configuration says which."
            )
        if not source.exists():
            raise MountRefused(f"{source} is not on this node; make it, or mount something else.")


def refuse_dockers_socket(folder: Path, daemon_address: str) -> None:
    """Read-only is no help: a socket is not written to. Raises `MountRefused`."""
    socket = os.path.realpath(daemon_address.removeprefix("unix://"))
    if Path(socket).is_relative_to(os.path.realpath(folder)):
        raise MountRefused(f"{folder} would give the container Docker's own socket; mount something else.")


def model_mounts(model: Path) -> tuple[Path, ...]:
    """The folder, and where its links lead: the hub's cache is made of links."""
    targets = {Path(os.path.realpath(file)).parent for file in model.rglob("*") if file.is_symlink()}
    return (model, *sorted(target for target in targets if not target.is_relative_to(os.path.realpath(model))))
