"""Numbers and lists in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[object]) -> str:
    """ "a", "a and b", "a, b and c"."""
    words = [str(name) for name in names]
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 else f"{100 * part:.1f} %"


def slower_words(part: float) -> str:
    """Of what takes so much longer: 0.23 is "23 % slower"."""
    return f"{percent(part)} slower" if part < 9 else f"{part + 1:,.0f} times as slow"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{1000 * seconds:,.0f} ms"


def at_once(requests: int) -> str:
    return "one request" if requests == 1 else f"{requests} requests at once"


def layers_words(start: int, stop: int) -> str:
    return f"layer {start}" if stop == start + 1 else f"layers {start}-{stop - 1}"
