"""Several processes' /metrics as one page: each sample says of which gateway it is. Nothing is added up here.

Sums would be wrong for half of what is told: every process counts its own requests, but sees the same replicas.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping


def merged(pages: Mapping[int, bytes]) -> bytes:
    """By gateway number. A page is Prometheus's text; each family is told once, with the samples of all."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number in sorted(pages):
        for family, line in _lines(pages[number].decode()):
            if line.startswith("#"):
                if line not in (head := heads.setdefault(family, [])):
                    head.append(line)
            else:
                samples.setdefault(family, []).append(_labelled(line, number))
    families = dict.fromkeys((*heads, *samples))
    lines = (line for family in families for line in (*heads.get(family, ()), *samples.get(family, ())))
    return "".join(f"{line}\n" for line in lines).encode()


def _lines(page: str) -> Iterator[tuple[str, str]]:
    """With the family each belongs to: the one named last, for a family's samples follow its head."""
    family = ""
    for line in page.splitlines():
        if line.startswith(("# HELP ", "# TYPE ")):
            family = line.split(" ", 3)[2]
        if line and line != "# EOF":
            yield family, line


def _labelled(sample: str, number: int) -> str:
    name, brace, rest = sample.partition("{")
    if brace:
        return f'{name}{{gateway="{number}",{rest}'
    name, _, value = sample.partition(" ")
    return f'{name}{{gateway="{number}"}} {value}'
