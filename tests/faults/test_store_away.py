"""The store goes away and comes back: rows 28, 29, 33 and 35. Requests, engines and what is known stay; writes wait."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from deepinfer.fleet import keys
from tests.etcd_cluster import etcd_cluster
from tests.faults.store_fleet import SPEED, STALE, StoreFleet, stopped, store_fleet
from tests.fleet import eventually
from tests.stories.test_kills import under_load

pytestmark = pytest.mark.faults

AWAY_SECONDS = 30.0
MINORITY_SECONDS = 8.0
"""Longer than the leases of the leader and of the node, which nobody can renew meanwhile."""
SIM = {"model": "chat", "engine": "sim", "device": "cpu", "engine_args": SPEED}


def test_row_28_a_killed_etcd_that_is_started_again_costs_nothing(tmp_path: Path) -> None:
    with store_fleet(tmp_path) as fleet:
        engine = fleet.deploy_sim("chat")
        with under_load(fleet) as load:
            before = fleet.view()
            fleet.etcd.kill()
            load.more()
            fleet.etcd.start()
            eventually(lambda: not fleet.is_stale(), 5)
            assert fleet.http.patch("/v1/deployments/chat", json={"replicas": 2}).status_code == 200
            eventually(lambda: len(fleet.view().fleet.placements) == 2, 5)
            fleet.wait_ready("chat")
            load.more()
        assert load.failed == []
        assert engine.is_running()
        after = fleet.view().reading
        for key in [key for key in before.reading.entries if key.startswith((keys.NODES, keys.PLACEMENTS))]:
            assert after.mod_revision(key) == before.reading.mod_revision(key), f"{key} was written again"


def test_row_29_while_etcd_is_away_everything_that_runs_runs_on(tmp_path: Path) -> None:
    with store_fleet(tmp_path) as fleet:
        kept, killed = fleet.deploy_sim("chat"), fleet.deploy_sim("other")
        placements = fleet.view().fleet.placements
        with under_load(fleet) as load:
            fleet.etcd.kill()
            back_at = time.monotonic() + AWAY_SECONDS
            eventually(fleet.is_stale, 5)
            killed.kill()
            killed.wait()
            eventually(lambda: answers(fleet, "other"), 15)  # where its predecessor was, for nobody can be told
            assert fleet.is_stale()
            listed = fleet.command("get", "deployments")
            assert "chat" in listed.stdout and "the server's store is away" in listed.stderr
            assert len(listed.stderr.splitlines()) == 1
            (tmp_path / "chat.yaml").write_text(json.dumps({"name": "chat", **SIM}))
            compared = fleet.command("diff", "-f", str(tmp_path / "chat.yaml"))
            assert (compared.stdout, "the server's store is away" in compared.stderr) == ("", True)
            assert "away" in fleet.command("fleet", "status").stdout
            while time.monotonic() < back_at:
                load.more()
                assert fleet.names() == ["chat", "other"]
            refused = fleet.try_to_write()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert int(refused.headers["retry-after"]) and refused.headers[STALE]
            again = fleet.engines_of("other")
            assert again and killed not in again, "its agent did not start it again by itself"
            fleet.etcd.start()
            eventually(lambda: not fleet.is_stale(), 5)
            assert fleet.try_to_write().status_code == 201
            load.more()
        assert load.failed == []
        fleet.wait_ready("chat")
        (restarted,) = fleet.wait_ready("other")
        assert (restarted["pid"], restarted["restarts"]) == (again[0].pid, 1)
        assert kept.is_running()
        assert {p.id: p for p in fleet.view().fleet.placements if p.deployment != "new"} == {
            p.id: p for p in placements
        }


def test_row_33_while_two_of_three_members_are_lost_everything_that_runs_runs_on(tmp_path: Path) -> None:
    with etcd_cluster(3) as three, StoreFleet(tmp_path, three.endpoints, "lease_seconds = 2\n").running() as fleet:
        engine = fleet.deploy_sim("chat")
        placements = fleet.view().fleet.placements
        with under_load(fleet) as load:
            lost = [member for member in three.members if not member.leads]
            for member in lost:
                member.kill()
            back_at = time.monotonic() + MINORITY_SECONDS
            eventually(fleet.is_stale, 10)
            while time.monotonic() < back_at:
                load.more()
                assert fleet.names() == ["chat"]
            refused = fleet.try_to_write()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
            assert refused.headers[STALE]
            for member in lost:
                member.start()
            three.wait_healthy()
            has_leader = time.monotonic()
            eventually(lambda: not fleet.is_stale(), 5)
            eventually(lambda: fleet.try_to_write().status_code in (201, 409), 5)  # 409: written, the answer was lost
            assert time.monotonic() - has_leader < 5
            eventually(lambda: fleet.replicas("new"), 8)
            assert time.monotonic() - has_leader < 8  # etcd gave the old leader's lease its whole time anew
            load.more()
        assert load.failed == []
        (served,) = fleet.wait_ready("chat")
        assert (served["pid"], served["restarts"], engine.is_running()) == (engine.pid, 0, True)
        assert [p for p in fleet.view().fleet.placements if p.deployment == "chat"] == list(placements)
        assert fleet.serve is not None
        assert [process.poll() for process in (fleet.serve, *fleet.workers.values())] == [None, None]


def answers(fleet: StoreFleet, model: str) -> bool:
    """Whether a short question to it is answered."""
    body = {"model": model, "prompt": "hello", "max_tokens": 3}
    return fleet.http.post("/v1/completions", json=body).status_code == 200


def test_row_35_what_was_compacted_while_serve_and_agent_were_stopped_is_not_missed(tmp_path: Path) -> None:
    with store_fleet(tmp_path) as fleet:
        kept, deleted = fleet.deploy_sim("chat"), fleet.deploy_sim("other")
        with stopped(fleet.serve, *fleet.workers.values()):
            changed = next(d for d in fleet.view().fleet.deployments if d.name == "chat")
            two = changed.spec.model_copy(update={"replicas": 2})
            changed = changed.model_copy(update={"spec": two, "generation": 2})
            fleet.write_and_compact({keys.deployment("other"): None, keys.deployment("chat"): changed.to_json()})
            fleet.etcd.restart()  # so that nothing is on its way to them, and their watches must be made anew
            fleet.write_and_compact({keys.deployment("third"): b"damaged"})
        eventually(lambda: fleet.names() == ["chat"], 2)
        eventually(lambda: [p.id for p in fleet.view().fleet.placements if p.replica == 1], 5)
        eventually(lambda: not deleted.is_running() or deleted.status() == "zombie", 10)
        assert len(fleet.wait_ready("chat")) == 2
        assert kept.is_running()
