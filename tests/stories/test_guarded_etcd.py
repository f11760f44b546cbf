"""A whole fleet on an etcd of somebody else's: TLS from both sides, a login for one namespace, three members."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from tests.etcd_certificates import make_certificates
from tests.etcd_cluster import etcd_cluster
from tests.etcd_users import PASSWORD, ROOT, fleet_config, want_logins
from tests.fleet import Fleet, eventually


def test_a_fleet_on_a_guarded_etcd_serves_and_outlives_a_member(tmp_path: Path) -> None:
    with etcd_cluster(3, certificates=make_certificates(tmp_path / "tls")) as cluster:
        want_logins(cluster, "/team-a/deepinfer")
        fleet = Fleet(tmp_path)
        etcd = fleet_config(cluster, tmp_path / "password").model_dump(mode="json", exclude_none=True)
        wanted = {**etcd, "namespace": "/team-a"}
        lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in wanted.items())
        fleet.config.write_text(f"[etcd]\n{lines}\n[serve]\nport = {fleet.port}\n[worker]\n")
        with fleet.running():
            fleet.deploy(name="chat", model="chat", engine="sim")
            fleet.wait_ready("chat")
            for process in fleet.processes():
                assert PASSWORD not in " ".join(process.cmdline())
                assert PASSWORD not in " ".join(process.environ().values())

            cluster.leader.kill()
            eventually(lambda: deployed(fleet, "more"))
            fleet.wait_ready("more")
            assert fleet.openai.chat.completions.create(
                model="more", messages=[{"role": "user", "content": "hello"}], max_tokens=3
            )
        found = cluster.etcdctl("get", "--prefix", "--keys-only", "", login=ROOT).split()
        assert found and all(key.startswith("/team-a/deepinfer") for key in found)
        for log in tmp_path.glob("*.log"):
            assert PASSWORD not in log.read_text()


def deployed(fleet: Fleet, name: str) -> bool:
    """While the store changes its leader, a write is answered by 503, or found applied by a second try."""
    try:
        return fleet.http.post("/v1/deployments", json={"name": name, "model": name, "engine": "sim"}).status_code in (
            201,
            409,
        )
    except httpx.TransportError:
        return False
