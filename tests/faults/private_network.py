"""A network of the test's own, and what can be broken in it: nothing of it reaches anybody else on the machine.

Everything deepinfer listens on is on loopback in this version, so machines that are cut from each other are groups of
processes here (`group=` of Popen): the kernel drops what a group sends. What is left of rules, the kernel forgets with
the network, once the last process in it has ended.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def private_network() -> Iterator[None]:
    """This thread, and every process and thread that it starts, is in a network with nothing but loopback."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _checked(_libc.unshare(_CLONE_NEWNET), "make a network (root may)")
        try:
            _run("ip", "link", "set", "lo", "up")
            yield
        finally:
            _checked(_libc.setns(home, _CLONE_NEWNET), "go back to the machine's network")
    finally:
        os.close(home)


@contextmanager
def silenced(group: int, ports: Sequence[int] = ()) -> Iterator[None]:
    """Nothing that a group of processes sends arrives anywhere; or, with `ports`, at these."""
    where = ["-p", "tcp", "-m", "multiport", "--dports", ",".join(map(str, ports))] if ports else []
    with _rule("OUTPUT", *where, "-m", "owner", "--gid-owner", str(group), "-j", "DROP"):
        yield


@contextmanager
def redirected(port: int, to: int) -> Iterator[None]:
    """Who connects to a port reaches another one."""
    with _rule("OUTPUT", "-t", "nat", "-p", "tcp", "--dport", str(port), "-j", "REDIRECT", "--to-ports", str(to)):
        yield


def ports_of(pid: int) -> list[int]:
    """What a process of this network listens on."""
    found = psutil.Process(pid).net_connections("tcp")
    return sorted({connection.laddr.port for connection in found if connection.status == psutil.CONN_LISTEN})


@contextmanager
def _rule(chain: str, *words: str) -> Iterator[None]:
    _run("iptables", "-w", "-I", chain, *words)
    try:
        yield
    finally:
        _run("iptables", "-w", "-D", chain, *words)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def _checked(answer: int, what: str) -> None:
    if answer != 0:
        raise OSError(ctypes.get_errno(), f"cannot {what}: {os.strerror(ctypes.get_errno())}", str(Path("/proc/self")))
