"""Which versions of etcd keep what they acknowledge. Pure."""

from __future__ import annotations

import re

OLDEST_SOUND: dict[tuple[int, ...], tuple[int, ...]] = {(3, 4): (3, 4, 22), (3, 5): (3, 5, 6)}
"""Older ones can lose acknowledged writes in a crash (etcd's issues 13766, 14370); these are etcd's own minimum."""


def parsed_version(text: str) -> tuple[int, ...]:
    """The first dotted number in it; () if there is none."""
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, match.groups())) if match else ()


def version_warning(version: str) -> str | None:
    """What there is to say against a server of this version."""
    number = parsed_version(version)
    if not number:
        return None
    if number < (3, 4):
        return f"etcd {version} is too old; deepinfer is tried with 3.4 and newer"
    oldest = OLDEST_SOUND.get(number[:2])
    if oldest is None or number >= oldest:
        return None
    sound = ".".join(map(str, oldest))
    return f"etcd {version} can lose writes in a crash; run {sound} or newer for anything that matters"
