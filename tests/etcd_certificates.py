"""Certificates for an etcd that wants TLS from both sides, made by openssl and good for two days."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = [
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "2",
]


@dataclass(frozen=True)
class Certificates:
    """Files of one authority, a server at 127.0.0.1, and a client."""

    folder: Path

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def cert_file(self) -> Path:
        return self.folder / "client.pem"

    @property
    def key_file(self) -> Path:
        return self.folder / "client.key"

    def server_flags(self, folder: Path) -> list[str]:
        """With copies in `folder`: the server's user must be able to read them."""
        for name in ("server.pem", "server.key", "ca.pem"):
            (folder / name).write_bytes((self.folder / name).read_bytes())
        return [
            f"--cert-file={folder / 'server.pem'}",
            f"--key-file={folder / 'server.key'}",
            "--client-cert-auth",
            f"--trusted-ca-file={folder / 'ca.pem'}",
        ]

    @property
    def etcdctl_flags(self) -> list[str]:
        return [f"--cacert={self.ca_file}", f"--cert={self.cert_file}", f"--key={self.key_file}"]


def make_certificates(folder: Path) -> Certificates:
    """In a new folder."""
    folder.mkdir()
    made = Certificates(folder)
    _make(made.ca_file, "authority")
    signed = ["-CA", str(made.ca_file), "-CAkey", str(made.ca_file.with_suffix(".key"))]
    signed += ["-addext", "basicConstraints=critical,CA:FALSE"]
    _make(folder / "server.pem", "server", *signed, "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    _make(made.cert_file, "client", *signed)
    return made


def _make(file: Path, name: str, *options: str) -> None:
    subprocess.run(
        [*_NEW_KEY, "-keyout", str(file.with_suffix(".key")), "-out", str(file), "-subj", f"/CN={name}", *options],
        check=True,
        capture_output=True,
    )
