"""Logins at a real etcd: root, and one that may use the fleet's keys only."""

from __future__ import annotations

from pathlib import Path

from deepinfer.fleet.config import EtcdConfig
from tests.etcd_cluster import EtcdCluster

ROOT = "root:for root alone"
USER, PASSWORD = "deepinfer", "for the fleet"


def want_logins(cluster: EtcdCluster, keys: str = "/deepinfer") -> None:
    """`keys`: the prefix of those that the fleet may read and write."""
    cluster.etcdctl("user", "add", ROOT)
    cluster.etcdctl("user", "grant-role", "root", "root")
    cluster.etcdctl("role", "add", "fleet")
    cluster.etcdctl("role", "grant-permission", "fleet", "--prefix=true", "readwrite", keys)
    cluster.etcdctl("user", "add", f"{USER}:{PASSWORD}")
    cluster.etcdctl("user", "grant-role", USER, "fleet")
    cluster.etcdctl("auth", "enable")


def change_password(cluster: EtcdCluster, password: str) -> None:
    cluster.etcdctl("user", "delete", USER, login=ROOT)  # `user passwd` asks at a terminal
    cluster.etcdctl("user", "add", f"{USER}:{password}", login=ROOT)
    cluster.etcdctl("user", "grant-role", USER, "fleet", login=ROOT)


def fleet_config(cluster: EtcdCluster, password_file: Path) -> EtcdConfig:
    """What a fleet's configuration file would say about this etcd."""
    password_file.write_text(f"{PASSWORD}\n")
    named = {"endpoints": tuple(cluster.endpoints), "username": USER, "password_file": password_file}
    certificates = cluster.certificates
    if certificates:
        named |= {name: getattr(certificates, name) for name in ("ca_file", "cert_file", "key_file")}
    return EtcdConfig.model_validate(named)
