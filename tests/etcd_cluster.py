"""Real etcd members, one or three, that can be killed, paused, cut from their peers and given a slow disk.

Each runs as a user of its own, so that the packet filter can tell them apart on one loopback: this wants root.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deepinfer.fleet.embedded_etcd import newest_etcd
from tests.etcd_certificates import Certificates
from tests.fleet import free_port

FIRST_UID = 41001
QUOTA_BYTES = 2 << 30


class Member:
    """One etcd. `start` does not wait; `wait_healthy` of the cluster does."""

    def __init__(self, number: int, folder: Path, program: Path) -> None:
        self.name, self.uid = f"m{number}", FIRST_UID + number
        self.client_port, self.peer_port, self._metrics_port = free_port(), free_port(), free_port()
        self.endpoint = f"127.0.0.1:{self.client_port}"
        self.peer_url = f"http://127.0.0.1:{self.peer_port}"
        self._folder, self._program = folder / self.name, program
        self._folder.mkdir(mode=0o700)
        os.chown(self._folder, self.uid, self.uid)
        self._command: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return "\n".join(line for line in self._log_file.read_text().splitlines() if "/health" not in line)[-3000:]

    @property
    def _log_file(self) -> Path:
        return self._folder / "etcd.log"

    def prepare(self, members: Sequence[Member], flags: Sequence[str], certificates: Certificates | None) -> None:
        client = f"{'https' if certificates else 'http'}://{self.endpoint}"
        self._command = [
            # The death signal must be set after the user: a change of user clears it.
            *("setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--pdeathsig=KILL"),
            str(self._program),
            f"--name={self.name}",
            f"--data-dir={self._folder / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={','.join(f'{m.name}={m.peer_url}' for m in members)}",
            f"--listen-metrics-urls=http://127.0.0.1:{self._metrics_port}",
            "--log-level=warn",
            "--log-outputs=stderr",
            *(certificates.server_flags(self._folder) if certificates else ()),
            *flags,
        ]

    def start(self) -> None:
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait_healthy(self, seconds: float = 30) -> None:
        """It answers, and its cluster has a leader."""
        assert self._process is not None
        deadline = time.monotonic() + seconds
        while not self._is_healthy():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log
            time.sleep(0.02)  # another process: there is no event to wait for

    def metric(self, name: str) -> float:
        """The sum of all lines that begin with `name`."""
        lines = self._http_get("/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    @property
    def leads(self) -> bool:
        return self.metric("etcd_server_is_leader ") == 1

    @contextmanager
    def slow_disk(self, seconds: float) -> Iterator[None]:
        """Every flush to the disk takes so much longer."""
        inject = f"inject=fdatasync,fsync:delay_exit={int(seconds * 1_000_000)}"
        command = ["strace", "-f", "-p", str(self.pid), "-e", "trace=fdatasync,fsync", "-e", inject, "-o", "/dev/null"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            try:
                assert tracer.stderr is not None
                assert "attached" in tracer.stderr.readline()
                yield
            finally:
                tracer.send_signal(signal.SIGINT)  # it lets go of etcd
                tracer.communicate(timeout=20)

    def _is_healthy(self) -> bool:
        try:
            return '"true"' in self._http_get("/health")
        except (OSError, http.client.HTTPException):
            return False

    def _http_get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self._metrics_port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()


class EtcdCluster:
    """Use `with etcd_cluster(3) as cluster`."""

    def __init__(self, members: Sequence[Member], certificates: Certificates | None) -> None:
        self.members = tuple(members)
        self.certificates = certificates

    @property
    def endpoints(self) -> list[str]:
        scheme = "https://" if self.certificates else ""
        return [scheme + member.endpoint for member in self.members]

    @property
    def leader(self) -> Member:
        return next(member for member in self.members if member.leads)

    def member_at(self, endpoint: str) -> Member:
        return next(member for member in self.members if endpoint.endswith(member.endpoint))

    def wait_healthy(self) -> None:
        for member in self.members:
            member.wait_healthy()

    @contextmanager
    def cut_from_peers(self, member: Member) -> Iterator[None]:
        """Its clients reach it; the other members do not, nor it them."""
        peers = ",".join(str(each.peer_port) for each in self.members)
        rules = [
            ["-p", "tcp", "-m", "owner", "--uid-owner", str(member.uid), "-m", "multiport", "--ports", peers],
            ["-p", "tcp", "-m", "multiport", "--ports", str(member.peer_port)],
        ]
        made = []
        try:
            for rule in rules:
                subprocess.run(["iptables", "-w", "-I", "OUTPUT", *rule, "-j", "DROP"], check=True)
                made.append(rule)
            yield
        finally:
            for rule in made:
                subprocess.run(["iptables", "-w", "-D", "OUTPUT", *rule, "-j", "DROP"], check=True)

    def etcdctl(self, *arguments: str, login: str = "") -> str:
        """Its output. `login` is user:password."""
        options = [f"--endpoints={','.join(self.endpoints)}", "--command-timeout=10s"]
        options += [f"--user={login}"] if login else []
        if self.certificates:
            options += self.certificates.etcdctl_flags
        command = [str(newest_etcd().with_name("etcdctl")), *options, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextmanager
def etcd_cluster(size: int, *flags: str, certificates: Certificates | None = None) -> Iterator[EtcdCluster]:
    """Healthy members, which are gone after the block with all they wrote."""
    folder = Path(tempfile.mkdtemp(prefix="etcd-cluster-"))
    folder.chmod(0o711)  # each member's user must get at its own folder and at the program
    program = Path(shutil.copy(newest_etcd(), folder / "etcd"))
    program.chmod(0o755)
    members = [Member(number, folder, program) for number in range(size)]
    try:
        for member in members:
            member.prepare(members, flags, certificates)
            member.start()
        cluster = EtcdCluster(members, certificates)
        cluster.wait_healthy()
        yield cluster
    finally:
        for member in members:
            member.kill()
        shutil.rmtree(folder)
