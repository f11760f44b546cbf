"""`backup` and `restore`: the store as one file, by etcd's own snapshot. They talk to etcd, and need no server."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deepinfer.cli.failures import InvalidInput, OperationFailed, ServerNotReachable
from deepinfer.cli.options import ConfigFile, Etcd
from deepinfer.fleet.sizes import size

if TYPE_CHECKING:
    from deepinfer.fleet.config import EtcdConfig

File = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]


def backup(file: File, *, config: ConfigFile = None, etcd: Etcd = None) -> None:
    """Write all that etcd holds to FILE: whole, or not at all. An etcd with logins wants its root user."""
    from deepinfer.fleet.errors import StoreDenied, StoreUnavailable

    try:
        written = asyncio.run(_backed_up(_etcd(config, etcd), file))
    except StoreDenied as error:
        raise OperationFailed(f"{error} A backup wants a user with etcd's root role.") from error
    except StoreUnavailable as error:
        raise ServerNotReachable(str(error)) from error
    typer.echo(f"{file} is written ({size(written)}); `deepinfer restore` makes a store of it")


def restore(file: File, *, config: ConfigFile = None, etcd: Etcd = None) -> None:
    """Make the embedded etcd's data of a backup; what was there is kept. Stop `serve` and the workers first."""
    from deepinfer.fleet.restore import restore as restore_backup

    chosen = _etcd(config, etcd)
    if chosen.endpoints:
        raise OperationFailed(_by_hand(file, chosen))
    kept = restore_backup(file.absolute(), chosen.data_dir.absolute())
    typer.echo(f"{chosen.data_dir} is made of {file}; start `deepinfer serve` and the workers again")
    if kept:
        typer.echo(f"what was there is kept in {kept}; remove it when all is well")


async def _backed_up(etcd: EtcdConfig, file: Path) -> int:
    from deepinfer.cli.waiting import display
    from deepinfer.fleet.backup import back_up
    from deepinfer.fleet.store import EtcdStore
    from deepinfer.fleet.store_access import access_of

    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type checker: a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        with display() as shown:
            async with EtcdStore.connect(etcd.addresses, access=access_of(etcd)) as store:
                return await back_up(
                    store, file, lambda done, all_: shown.show(f"writing {file}: {size(done)} of {size(all_)}")
                )
    except asyncio.CancelledError as error:
        raise KeyboardInterrupt from error  # nothing is left of it


def _etcd(config: str | None, endpoints: list[str] | None) -> EtcdConfig:
    from deepinfer.fleet.config import InvalidConfig, at_endpoints, load_config

    try:
        return at_endpoints(load_config(Path(config) if config else None).etcd, endpoints)
    except InvalidConfig as error:
        raise InvalidInput(str(error)) from error


def _by_hand(file: Path, etcd: EtcdConfig) -> str:
    from deepinfer.fleet.restore import BUMP_REVISION

    return (
        f"The etcd at {', '.join(etcd.endpoints)} is not deepinfer's own; stop it, and run on each member's machine: "
        f"etcdutl snapshot restore {file} --name MEMBER --data-dir NEW_FOLDER --initial-cluster MEMBER=PEER_URL,… "
        f"--initial-advertise-peer-urls PEER_URL --initial-cluster-token NEW_TOKEN {' '.join(BUMP_REVISION)}"
    )
