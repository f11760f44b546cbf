"""Who is measured: processes that answer batches of prompts, told by JSON lines. All end with the bench."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.shards.steps import Answered, SeatOf, answered
from deepinfer.fleet.die_with_parent import dying_with_me

LAYERS = 30  # of SmolLM2-135M
NEW_TOKENS = 64
_ENDING_SECONDS = 20.0


class LineProcess:
    """A module of ours as a process, that answers each line with one."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = module.rpartition(".")[2]
        self._process = subprocess.Popen(
            dying_with_me([sys.executable, "-m", module, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def told(self) -> str:
        """Its next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended with status {self._process.wait()}.")
        return line.strip()

    def send(self, order: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """To what was sent."""
        answer: dict[str, Any] = json.loads(self.told())
        return answer

    def asked(self, order: object) -> dict[str, Any]:
        self.send(order)
        return self.answer()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass(frozen=True)
class Cut:
    """A pipeline to be made: which layers each stage has, and what the links between them are like."""

    cuts: tuple[int, ...] = ()
    threads: int = 1
    link_milliseconds: float | None = None  # None: without a proxy
    spares: int = 0
    layers: int = LAYERS

    @property
    def parts(self) -> list[tuple[int, int]]:
        return list(pairwise((0, *self.cuts, self.layers)))


@dataclass(frozen=True)
class Side:
    """A name and what answers under it."""

    name: str
    head: LineProcess
    stages: tuple[LineProcess, ...] = ()

    def answer(self, prompts: Sequence[Sequence[int]]) -> Answered:
        return answered(self.head.asked(order_of(prompts)))


def order_of(prompts: Sequence[Sequence[int]]) -> dict[str, object]:
    return {"prompts": prompts, "new_tokens": NEW_TOKENS}


@contextmanager
def side(name: str, folder: Path, cut: Cut) -> Iterator[Side]:
    """One of ours, ready."""
    with ExitStack() as stack:
        count = len(cut.cuts) + cut.spares
        stages = [_stage(stack, folder, f"stage-{number}", cut.threads) for number in range(1, count + 1)]
        endpoints = [stage.told() for stage in stages]
        if cut.link_milliseconds is not None:
            endpoints = _delayed(stack, endpoints, cut.link_milliseconds)
        named = [SeatOf(f"stage-{number}", endpoint) for number, endpoint in enumerate(endpoints, 1)]
        first, *others = cut.parts
        seats = [
            SeatOf(seat.name, seat.endpoint, *part) for seat, part in zip(named[: len(others)], others, strict=True)
        ]
        told = {
            "folder": str(folder),
            "threads": cut.threads,
            "layers": first,
            "seats": [asdict(seat) for seat in seats],
            "spares": [asdict(spare) for spare in named[len(others) :]],
        }
        head = LineProcess("benchmarks.shards.head_process", json.dumps(told))
        stack.callback(head.close)
        head.told()
        yield Side(name, head, tuple(stages))


def _stage(stack: ExitStack, folder: Path, name: str, threads: int) -> LineProcess:
    stage = LineProcess("benchmarks.shards.stage_process", str(folder), name, str(threads))
    stack.callback(stage.close)
    return stage


def _delayed(stack: ExitStack, endpoints: list[str], milliseconds: float) -> list[str]:
    proxy = LineProcess("benchmarks.shards.delaying_proxy", str(milliseconds), *endpoints)
    stack.callback(proxy.close)
    return proxy.told().split()
