"""Tokens end and passwords change while a fleet is at work, over TLS from both sides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepinfer.fleet.errors import StoreDenied
from deepinfer.fleet.store_access import access_of
from tests.etcd_certificates import make_certificates
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.etcd_users import change_password, fleet_config, want_logins
from tests.faults.etcd_traffic import traffic

pytestmark = pytest.mark.faults

TOKEN_SECONDS = 2


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[EtcdCluster]:
    certificates = make_certificates(tmp_path / "tls")
    with etcd_cluster(3, f"--auth-token-ttl={TOKEN_SECONDS}", certificates=certificates) as cluster:
        want_logins(cluster)
        yield cluster


async def test_row_39_tokens_end_and_the_password_is_rotated(guarded: EtcdCluster, tmp_path: Path) -> None:
    password_file = tmp_path / "password"
    access = access_of(fleet_config(guarded, password_file))
    async with traffic(guarded, access=access) as running:
        running.pause_writing()
        await asyncio.sleep(TOKEN_SECONDS + 2)  # unused for so long, the token ends
        began = time.monotonic()
        running.resume_writing()
        await running.goes_on(10)
        assert max(running.gaps_since(began)) < 1

        change_password(guarded, "another one")
        with pytest.raises(StoreDenied, match="password_file"):
            await running.store.read("/deepinfer/")
        password_file.write_text("another one")
        began = time.monotonic()
        await running.goes_on(10)
        assert max(running.gaps_since(began)) < 1
        await running.check_nothing_is_lost()
        assert running.leases_lost == 0


async def test_a_killed_leader_costs_no_more_with_tls_and_a_login(guarded: EtcdCluster, tmp_path: Path) -> None:
    leader = guarded.leader
    access = access_of(fleet_config(guarded, tmp_path / "password"))
    async with traffic(guarded, at=leader, access=access) as running:
        began = time.monotonic()
        leader.kill()
        await running.goes_on(30)
        assert max(running.gaps_since(began)) < 5
        leader.start()
        await asyncio.to_thread(leader.wait_healthy)
        await running.goes_on(30)
        await running.check_nothing_is_lost()
        assert running.leases_lost == 0
