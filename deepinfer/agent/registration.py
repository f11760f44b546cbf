"""This node's key in the store, under a lease: no key means "not heard of", never "dead".

A lost lease costs the key and nothing else: engines are left alone and a new lease is taken. When the node offers
something else, its key is written anew.
"""

from __future__ import annotations

import asyncio
import logging

from pydantic import BaseModel, ValidationError

from deepinfer.agent.node_record import NodeRecord
from deepinfer.fleet import keys
from deepinfer.fleet.errors import DeepinferError, LeaseLost, StoreConflict, StoreRefused, StoreUnavailable
from deepinfer.fleet.resources import Node
from deepinfer.fleet.store import EtcdStore, Lease

_TRY_AGAIN_SECONDS = 1.0

log = logging.getLogger(__name__)


class NodeNameTaken(DeepinferError):
    """Another worker has this name; give this one another name."""


class _HolderUnknown(DeepinferError):
    """Whose the node's key is cannot be read."""


class _Holder(BaseModel):
    """Whose a node's key is: all that is read of a record that another version may have written."""

    instance: str
    agent_endpoint: str


async def stay_registered(store: EtcdStore, record: NodeRecord, lease_seconds: int, registered: asyncio.Event) -> None:
    """Keep the node's key there and true, for ever. Raises `NodeNameTaken` if another worker holds it."""
    while True:
        node = record.node
        try:
            async with store.lease(lease_seconds) as lease:
                while not lease.lost.is_set():
                    record.changed.clear()
                    await _claim(store, record.node, lease)
                    registered.set()
                    await _first_of(lease.lost, record.changed)
            log.warning("the lease of node %s is lost; its engines keep running, registering again", node.name)
        except StoreConflict:
            continue  # somebody wrote the key meanwhile: look whose it is
        except (StoreUnavailable, StoreRefused, LeaseLost, _HolderUnknown) as error:
            log.warning("node %s cannot be registered, its engines keep running: %s", node.name, error)
        await asyncio.sleep(_TRY_AGAIN_SECONDS)


async def _claim(store: EtcdStore, node: Node, lease: Lease) -> None:
    key = keys.node(node.name)
    reading = await store.read(key)
    if key in reading.entries:
        holder = _holder(key, reading.entries[key].value)
        if holder.instance != node.instance:
            raise NodeNameTaken(
                f'Another worker is registered as "{node.name}" (its agent is at {holder.agent_endpoint}); give this '
                "one another name, or stop that one and wait until its lease has run out."
            )
    await store.commit({key: node.to_json()}, if_unchanged=reading, lease=lease)


def _holder(key: str, record: bytes) -> _Holder:
    try:
        return _Holder.model_validate_json(record)
    except ValidationError as error:
        raise _HolderUnknown(
            f"{key} cannot be read, so nobody knows whether another worker has this name; delete that key with etcdctl."
        ) from error


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
