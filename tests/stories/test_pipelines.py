"""A real model in stages over three nodes: whoever dies under 16 streams, every answer is as it would have been."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from deepinfer.fleet.pipeline import Layout
from deepinfer.fleet.resources import Phase
from tests.alive import is_alive
from tests.faults.fault_fleet import FaultFleet
from tests.fleet import eventually

STREAMS = 16
TOKENS = 40
OF = ("the sea", "a clock", "rivers", "snow", "bread", "the moon", "trains", "glass")


class Asked:
    """All prompts at once, as streams. `begun` once every one of them has some of its answer."""

    def __init__(self, fleet: FaultFleet) -> None:
        self.texts = [""] * STREAMS
        self.came = [0] * STREAMS
        self._fleet = fleet
        self._threads = [threading.Thread(target=self._ask, args=(at,), daemon=True) for at in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def begun(self) -> bool:
        return all(self.came)

    def answers(self) -> list[str]:
        for thread in self._threads:
            thread.join(90)
        return self.texts

    def _ask(self, at: int) -> None:
        stream = self._fleet.openai.completions.create(
            model="smollm2",
            prompt=f"Chapter {at}. A story of {OF[at % len(OF)]}. Once upon a time",
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for chunk in stream:
            self.texts[at] += chunk.choices[0].text
            self.came[at] += 1


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultFleet]:
    home = tmp_path_factory.mktemp("pipeline")
    with FaultFleet(home, nodes=3, worker="max_vram_mb = 700\n").running() as fleet:
        fleet.deploy(
            model="smollm2",
            engine="layer-shard",
            device="cpu",
            pipeline={"stages": 3},
            max_model_len=1024,
            engine_args={"threads": 1},
        )
        fleet.wait_ready("smollm2", seconds=170, as_foreseen=False)
        yield fleet


@pytest.fixture(scope="module")
def undisturbed(fleet: FaultFleet) -> list[str]:
    answers = Asked(fleet).answers()
    assert len(set(answers)) > STREAMS / 2
    assert all(answers)
    return answers


def layout_of(fleet: FaultFleet) -> Layout:
    (layout,) = fleet.now().layouts
    return layout


def processes(fleet: FaultFleet) -> dict[str, int]:
    """The pid of each process of the replica, by its placement; empty until all are up and seated."""
    now, layout = fleet.now(), layout_of(fleet)
    seated = {layout.head, *(seat.placement for seat in layout.seats)}
    up = {s.id: s for s in now.statuses if s.phase is Phase.READY and s.pid is not None and s.pipeline is not None}
    serves = (one for one in up.values() if one.pipeline and one.pipeline.number == layout.number)
    if len(seated) < 3 or seated != up.keys() or not any(one.id == layout.head for one in serves):
        return {}
    return {name: status.pid for name, status in up.items() if status.pid}


@pytest.mark.parametrize("which", [0, 1, 2], ids=["the head", "the second", "the last"])
def test_any_process_may_be_killed_in_mid_answer(
    fleet: FaultFleet, undisturbed: list[str], which: int, capsys: Any
) -> None:
    there = eventually(lambda: processes(fleet), 90)
    layout = layout_of(fleet)
    victim = [layout.head, *(seat.placement for seat in layout.seats)][which]
    asked = Asked(fleet)
    eventually(asked.begun, 60)
    os.kill(there[victim], signal.SIGKILL)
    died, before = time.monotonic(), list(asked.came)
    resumed = eventually(lambda: resumption(asked, before), 60)
    with capsys.disabled():
        print(f"\n{victim} killed: answers went on after {resumed - died:.2f} s")
    assert asked.answers() == undisturbed
    again = eventually(lambda: processes(fleet), 90)
    assert again[victim] != there[victim]
    eventually(lambda: not is_alive(there[victim]), 20)


def resumption(asked: Asked, before: list[int]) -> float:
    """When every stream had said something again, two seconds' worth of what was under way left out; 0: not yet."""
    went_on = all(now > then for now, then in zip(asked.came, before, strict=True))
    return time.monotonic() if went_on else 0.0
