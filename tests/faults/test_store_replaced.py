"""The store that comes back is another one: rows 37 and 38. No engine ends by its word until a person confirms it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.fault_fleet import FaultFleet
from tests.faults.store_fleet import joined, store_fleet
from tests.fleet import eventually
from tests.stories.test_kills import under_load

pytestmark = pytest.mark.faults


def test_row_37_a_wiped_store_ends_no_engine_and_takes_no_write_until_it_is_confirmed(tmp_path: Path) -> None:
    with store_fleet(tmp_path) as fleet:
        engine = fleet.deploy_sim("chat")
        first = joined(fleet)
        with under_load(fleet) as load:
            fleet.etcd.wipe()
            fleet.etcd.start()
            eventually(lambda: "wiped or exchanged" in fleet.told()["trouble"], 10)
            eventually(lambda: list(fleet.told()["waiting_nodes"]) == ["node-1"], 20)
            load.more()
            refused = fleet.try_to_write()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "another_fleet")
            assert "deepinfer fleet confirm" in refused.json()["error"]["message"]
            assert fleet.names() == ["chat"] and fleet.is_stale()
            fleet.kill_worker()  # what it knows of its fleet is on its disk
            fleet.start_worker()
            eventually(lambda: list(fleet.told()["waiting_nodes"]) == ["node-1"])
            load.more()
        assert load.failed == []
        assert engine.is_running()
        view = fleet.view()
        assert (view.fleet.deployments, view.fleet.placements, view.fleet.statuses) == ((), (), ())
        assert "node-1 waits: The store was wiped" in fleet.command("fleet", "status").stdout
        said = fleet.command("fleet", "confirm", "--yes").stdout
        second = eventually(lambda: fleet.told()["id"] != first and fleet.told()["id"])
        assert second in said
        eventually(lambda: not engine.is_running() or engine.status() == "zombie", 20)  # this store does not want it
        eventually(lambda: not fleet.told()["waiting_nodes"])
        assert (fleet.names(), joined(fleet)) == ([], second)
        fleet.deploy_sim("chat")


def test_row_37_a_control_plane_that_starts_on_a_wiped_store_ends_no_engine_either(tmp_path: Path) -> None:
    """It founds a new fleet there, which the node does not follow before a person says so."""
    with store_fleet(tmp_path) as fleet:
        engine = fleet.deploy_sim("chat")
        first = joined(fleet)
        assert fleet.serve is not None
        fleet.serve.kill()
        fleet.serve.wait()
        fleet.etcd.wipe()
        fleet.etcd.start()
        fleet.start_serve()
        new_fleet = f"does not succeed fleet {first}"  # the node may have come before it was founded, and said so first
        eventually(lambda: new_fleet in fleet.told()["waiting_nodes"].get("node-1", ""), 20)
        fleet.deploy(name="chat", model="chat", engine="sim", device="cpu")
        refused = eventually(lambda: fleet.get("/v1/deployments/chat")["refusals"])
        assert new_fleet in refused["node-1"]
        assert fleet.told()["trouble"] == ""
        assert engine.is_running() and not fleet.view().fleet.statuses
        assert fleet.http.post("/v1/fleet/confirm").status_code == 200
        fleet.wait_ready("chat", as_foreseen=False)
        eventually(lambda: not fleet.told()["waiting_nodes"])


def test_row_37_who_doubts_a_wiped_store_does_not_keep_others_from_leading_there(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, gateways=2, nodes=0).running() as fleet:
        doubting, late = fleet.gateways
        late.kill()
        assert fleet.leader() is doubting
        fleet.etcd.wipe()
        fleet.etcd.start()
        eventually(lambda: "wiped or exchanged" in fleet.get("/v1/fleet")["trouble"], 10)
        fleet.start_gateway(late)
        assert late.http.get("/v1/fleet").json()["trouble"] == ""
        assert fleet.leader() is late
        late.http.post("/v1/deployments", json={"name": "chat", "model": "m", "engine": "sim"}).raise_for_status()
        eventually(lambda: fleet.now().refusals, 5)
        assert late.http.post("/v1/fleet/confirm").raise_for_status().json()["trouble"] == ""
        assert doubting.http.post("/v1/fleet/confirm").raise_for_status().json()["trouble"] == ""
        late.kill()
        assert fleet.leader(other_than=late) is doubting


def test_row_38_after_an_old_backup_was_restored_nothing_older_runs_and_what_it_knows_runs_on(tmp_path: Path) -> None:
    """Its one device has no room for two engines, so "newer" was renewed in place: its engine is above its epoch."""
    with store_fleet(tmp_path, worker="simulated_devices = 1") as fleet:
        unchanged, _ = fleet.deploy_sim("chat"), fleet.deploy_sim("newer", device="sim:0")
        fleet.etcd.save(tmp_path / "backup")
        assert fleet.http.patch("/v1/deployments/newer", json={"max_model_len": 64}).status_code == 200
        eventually(lambda: fleet.replicas("newer")[0]["epoch"] == 2)
        fleet.wait_ready("newer")
        late = fleet.deploy_sim("late")
        with under_load(fleet) as load:
            fleet.etcd.restore(tmp_path / "backup")
            fleet.etcd.start()
            eventually(lambda: fleet.names() == ["chat", "newer"], 5)
            assert fleet.told()["trouble"] == ""
            eventually(lambda: not late.is_running() or late.status() == "zombie", 20)
            eventually(lambda: fleet.replicas("newer")[0]["epoch"] == 3, 5)
            (again,) = fleet.wait_ready("newer")
            assert (again["epoch"], fleet.get("/v1/deployments/newer")["max_model_len"]) == (3, None)
            load.more()
            assert fleet.try_to_write().status_code == 201
        assert load.failed == []
        assert unchanged.is_running()
