"""What the configuration says about getting into etcd, with the files it names."""

from __future__ import annotations

from pathlib import Path

from deepinfer.etcd.access import Access, Login, Tls
from deepinfer.fleet.config import EtcdConfig, InvalidConfig


def access_of(etcd: EtcdConfig) -> Access:
    """Certificates are read now; the password at every login, for it may be rotated. Raises `InvalidConfig`."""
    return Access(_tls(etcd), _login(etcd), etcd.namespace.encode())


def _tls(etcd: EtcdConfig) -> Tls | None:
    if not etcd.has_tls_files:
        return None
    ca, certificate, key = (_content(path) if path else None for path in (etcd.ca_file, etcd.cert_file, etcd.key_file))
    return Tls(ca, certificate, key)


def _login(etcd: EtcdConfig) -> Login | None:
    path = etcd.password_file
    if etcd.username is None or path is None:
        return None
    _content(path)  # a wrong path is told at the start
    return Login(etcd.username, lambda: path.read_text().strip("\r\n"))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidConfig(f"etcd: {path} cannot be read: {error.strerror}.") from error
