"""What is done before an engine starts on a device that somebody holds."""

from __future__ import annotations

import pytest

from deepinfer.agent.device_gate import FORGOTTEN_AFTER_SECONDS, EndThese, Free, Holder, Step, Wait, next_step
from deepinfer.agent.launching import Mark

OURS = Mark("chat-aaaaa-0", 1, "0" * 16)
OTHER = Mark("other-aaaaa-0", 1, "0" * 16)


def holder(pid: int = 7, name: str = "python", share: float = 1.0, mark: Mark | None = None) -> Holder:
    return Holder("cuda:0", pid, name, share, mark)


@pytest.mark.parametrize(
    ("holders", "waited", "step"),
    [
        ([], 0, Free()),
        ([holder(mark=OURS)], 0, EndThese((OURS,))),
        ([holder(mark=OURS), holder(8, mark=OURS), holder(9)], 0, EndThese((OURS,))),  # first what can be done
        ([holder(share=0.01, mark=OURS)], 0, EndThese((OURS,))),  # however little it holds
        ([holder(mark=OTHER)], 0, Wait("device cuda:0 is held by other-aaaaa-0 until that has ended")),
        ([holder(share=0.3)], 0, Free()),  # a desktop
        (
            [holder(7, "X", 0.3), holder(8, "train", 0.4)],
            0,
            Wait(
                "device cuda:0 is held by process 8 (train), which is not ours; free it or choose another device",
                needs_help=True,
            ),
        ),
        ([holder(name="", share=0.2)], 0, Wait("device cuda:0 still holds the memory of process 7, which has ended")),
        ([holder(name="", share=0.2)], FORGOTTEN_AFTER_SECONDS, Free()),
        (
            [holder(name="")],
            FORGOTTEN_AFTER_SECONDS,
            Wait(
                "device cuda:0 is held by process 7 (of another container), which is not ours; "
                "free it or choose another device",
                needs_help=True,
            ),
        ),
    ],
)
def test_every_holder_has_its_step(holders: list[Holder], waited: float, step: Step) -> None:
    assert next_step(holders, frozenset({OTHER}), waited) == step


def test_nothing_that_is_not_ours_is_ever_ended() -> None:
    for share in (0.0, 0.4, 1.0):
        for name in ("", "python"):
            assert not isinstance(next_step([holder(name=name, share=share)], frozenset(), 0), EndThese)
