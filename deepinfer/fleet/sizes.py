"""Numbers of bytes as people write and read them. Pure."""

from __future__ import annotations

import re

_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def size(count: int | None) -> str:
    if count is None:
        return "-"
    if count < 2**20:
        return f"{count / 2**10:.0f} KiB"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def bytes_of(text: str) -> int:
    """ "11GB" and "11G" are 11 * 10**9, "11GiB" is 11 * 2**30. Raises ValueError for what is no size."""
    found = _WRITTEN.fullmatch(text.strip())
    if not found:
        raise ValueError(f'"{text}" is no size; write it like 11GB or 512MiB')
    number, power, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[power.upper()])
