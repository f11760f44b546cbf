"""The way to the store, which may not be there yet: who needs it waits, everybody else goes on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from deepinfer.etcd.backoff import Backoff
from deepinfer.fleet.config import EtcdConfig
from deepinfer.fleet.embedded_etcd import embedded_etcd
from deepinfer.fleet.errors import StoreUnavailable
from deepinfer.fleet.etcd_version import version_warning
from deepinfer.fleet.identity import FleetIdentity, founded
from deepinfer.fleet.mirror import Mirror
from deepinfer.fleet.store import EtcdStore
from deepinfer.fleet.store_access import access_of

log = logging.getLogger(__name__)


class Connection:
    """Gives the mirror once there is one."""

    def __init__(self) -> None:
        self.mirror: Mirror | None = None

    def __call__(self) -> Mirror:
        if self.mirror is None:
            raise StoreUnavailable("serve is not connected to etcd yet; its log says why. Try again soon.")
        return self.mirror


@asynccontextmanager
async def own_or_named_store(etcd: EtcdConfig) -> AsyncIterator[EtcdStore]:
    """The configured etcd, waited for; without one, the etcd on this machine, started if it is not running."""
    async with AsyncExitStack() as stack:
        if not etcd.endpoints:
            found = await stack.enter_async_context(embedded_etcd(etcd.data_dir, etcd.port))
            log.info(
                "etcd %s at %s, %s", found.version, found.endpoint, "started" if found.started else "found running"
            )
        yield await stack.enter_async_context(answering_store(etcd))


@asynccontextmanager
async def answering_store(etcd: EtcdConfig) -> AsyncIterator[EtcdStore]:
    """Whoever runs it; waited for."""
    async with AsyncExitStack() as stack:
        yield await _first_answer(stack, etcd)


async def fleet_of(store: EtcdStore) -> FleetIdentity:
    """The first control plane of a store founds its fleet. Raises `SchemaTooNew`."""
    backoff = Backoff(first=0.5, longest=10.0)
    while True:
        try:
            return await founded(store)
        except StoreUnavailable as error:
            log.warning("%s Trying again.", error)
        await backoff.pause()


async def _first_answer(stack: AsyncExitStack, etcd: EtcdConfig) -> EtcdStore:
    backoff = Backoff(first=0.5, longest=10.0)
    while True:
        try:
            store = await stack.enter_async_context(EtcdStore.connect(etcd.addresses, access=access_of(etcd)))
            warning = version_warning(await store.server_version())
            if warning:
                log.warning("%s", warning)
            return store
        except StoreUnavailable as error:
            log.warning("%s Trying again.", error)
        await backoff.pause()
