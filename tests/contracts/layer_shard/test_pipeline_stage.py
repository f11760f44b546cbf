"""One stage alone, whose head is the test: what it does with orders and rows that no head of ours would send."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, Opening, Span, StepResult
from deepinfer.engine_shim.engines.layer_shard.pipeline import messages
from deepinfer.engine_shim.engines.layer_shard.pipeline.frames import FrameLimits, Header, Kind
from deepinfer.engine_shim.engines.layer_shard.pipeline.handshake import Role
from deepinfer.engine_shim.engines.layer_shard.pipeline.link import Link, connected
from deepinfer.engine_shim.engines.layer_shard.pipeline.messages import (
    Alive,
    Begin,
    Begun,
    Load,
    Loaded,
    Order,
    Passed,
    Peer,
    Refill,
    Report,
    Trouble,
)
from deepinfer.engine_shim.engines.layer_shard.pipeline.remote_stage import RemoteStage, StageLost
from deepinfer.engine_shim.engines.layer_shard.pipeline.rows import send_rows
from deepinfer.engine_shim.engines.layer_shard.pipeline.served_stage import ServedStage
from deepinfer.engine_shim.token_engine import SamplingParams
from tests.contracts.layer_shard.pipelines import SECRET, served_stage

LAYERS = (5, 7)
BEGIN = Begin(1, LAYERS, 1, None, 0)
SEEDED = SamplingParams(max_tokens=9, temperature=1.0, repetition_penalty=1.3, seed=3)


class TestedStage:
    """What its head sees of it, and a link for rows."""

    __test__ = False

    def __init__(self, stage: ServedStage) -> None:
        self.stage = stage
        self._head = connected(stage.endpoint, SECRET, stage.name, Role.HEAD)
        self._head.patience(5)

    def order(self, order: Order) -> None:
        message = messages.encoded(order)
        self._head.send(Header(Kind.ORDER, message_bytes=len(message)), message)

    def report(self) -> Report:
        """The next one that is no sign of life. Raises `TimeoutError`."""
        for _ in range(40):
            if not isinstance(report := self._received(), Alive):
                return report
        raise TimeoutError

    def rows(self) -> Link:
        return connected(self.stage.endpoint, SECRET, self.stage.name, Role.ROWS)

    def _received(self) -> Report:
        report: Report = messages.reports.decode(self._head.receive(FrameLimits(Kind.REPORT)).message)
        return report

    def says_nothing(self) -> bool:
        """For three beats."""
        return all(isinstance(self._received(), Alive) for _ in range(3))

    def close(self) -> None:
        self._head.close()


@pytest.fixture
def stage(tiny_model: Callable[..., Path]) -> Iterator[TestedStage]:
    """It has loaded the last layers, and nothing has begun."""
    served = served_stage(tiny_model("llama"), "last")
    tested = TestedStage(served)
    try:
        tested.order(Load(LAYERS))
        assert isinstance(tested.report(), Loaded)
        yield tested
    finally:
        tested.close()
        served.close()


def begun(stage: TestedStage, begin: Begin = BEGIN) -> Link:
    stage.order(begin)
    assert isinstance(stage.report(), Begun)
    return stage.rows()


def batch(step: int, start: int = 0, count: int = 4) -> Batch:
    opened = (Opening(0, SEEDED, (), 3, 0, (1, 2, 3, 4)),) if start == 0 else ()
    return Batch(step, (Span(0, start, count, 64, chooses=True),), opened)


def rows_of(count: int) -> torch.Tensor:
    torch.manual_seed(count)
    return torch.randn(count, 64)


def chosen(stage: TestedStage, rows: Link, step: int, span: tuple[int, int] = (0, 4), epoch: int = 1) -> int:
    start, count = span
    send_rows(rows, epoch, Passed(batch(step, start, count)), rows_of(count))
    result = stage.report()
    assert isinstance(result, StepResult)
    assert (result.step, result.error) == (step, "")
    return result.choices[0][1].token_id


def test_rows_before_any_orders_end_their_connection(stage: TestedStage, caplog: pytest.LogCaptureFixture) -> None:
    rows = stage.rows()
    rows.patience(5)
    with pytest.raises(ConnectionResetError):
        rows.receive(FrameLimits(Kind.REPORT))
    assert caplog.messages == ["rows came for stage last before the head had told it what to do"]
    assert isinstance(chosen(stage, begun(stage), 0), int), "it obeys all the same"


def test_a_step_that_comes_twice_chooses_no_token_twice(stage: TestedStage) -> None:
    once = begun(stage)
    tokens = [chosen(stage, once, step, span) for step, span in enumerate([(0, 4), (4, 1), (5, 1)])]
    twice = begun(stage)
    again = []
    for step, span in enumerate([(0, 4), (4, 1), (5, 1)]):
        again.append(chosen(stage, twice, step, span))
        send_rows(twice, 1, Passed(batch(step, *span)), rows_of(span[1]))
    assert again == tokens
    assert stage.says_nothing()


def test_rows_of_an_older_epoch_are_not_computed(stage: TestedStage) -> None:
    begun(stage)
    rows = begun(stage, Begin(2, LAYERS, 1, None, 0))
    send_rows(rows, 1, Passed(batch(0)), rows_of(4))
    assert stage.says_nothing()


def test_what_sent_rows_of_an_older_epoch_is_not_heard_any_more(stage: TestedStage) -> None:
    old = begun(stage)
    assert old.receive(FrameLimits(Kind.REPORT)), "it is heard now"
    begun(stage, Begin(2, LAYERS, 1, None, 0))
    old.patience(5)
    with pytest.raises(ConnectionResetError):
        while True:
            old.receive(FrameLimits(Kind.REPORT))


@pytest.mark.parametrize(
    ("order", "trouble"),
    [
        (Begin(2, (0, 3), 1, None, 0), Trouble(2, "could not hand a batch on: (0, 3)")),
        (Begin(2, LAYERS, 1, Peer("next", "127.0.0.1:1"), 0), "next"),
        (Begin(2, LAYERS, 1, Peer("next", "no port:"), 0), ""),
        (Refill(1, Batch(1)), ""),
        (Refill(1, Batch(1, (Span(7, 0, 3, 16),))), Trouble(1, "could not hand a batch on: 7")),
        (Load((3, 2)), ""),
        (Load((60_000, 65_000)), ""),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_an_order_that_cannot_be_obeyed_is_told_and_the_next_one_is_obeyed(
    order: Order, trouble: Trouble | str, stage: TestedStage
) -> None:
    begun(stage)
    stage.order(order)
    told = stage.report()
    assert isinstance(told, Trouble)
    if isinstance(trouble, Trouble):
        assert told == trouble
    assert told.lost == (trouble if isinstance(trouble, str) else "")
    assert told.epoch == getattr(order, "epoch", 0)
    assert isinstance(chosen(stage, begun(stage, Begin(3, LAYERS, 1, None, 0)), 0, epoch=3), int)


def test_an_older_epoch_does_not_begin(stage: TestedStage) -> None:
    begun(stage, Begin(5, LAYERS, 1, None, 0))
    stage.order(Begin(4, LAYERS, 1, None, 0))
    assert stage.report() == Trouble(4, "serves epoch 5, and 4 is older")


@contextmanager
def remote(stage: ServedStage) -> Iterator[tuple[RemoteStage, queue.SimpleQueue[StageLost]]]:
    lost: queue.SimpleQueue[StageLost] = queue.SimpleQueue()
    one = RemoteStage(Peer(stage.name, stage.endpoint), SECRET, lambda result: None, lost.put)
    try:
        yield one, lost
    finally:
        one.close()


def test_answers_to_what_is_not_asked_any_more_are_let_go(stage: TestedStage) -> None:
    with remote(stage.stage) as (head, lost):
        head.order(Load(LAYERS))
        head.order(Load((4, 7)))
        assert head.answered(Loaded, (4, 7), 10).layers == (4, 7)
        for epoch in (1, 2):
            head.order(Begin(epoch, (4, 7), 1, None, 0))
        assert head.answered(Begun, 2, 10).epoch == 2
        assert lost.empty()


def test_who_does_not_reach_the_next_stage_says_so_at_once(stage: TestedStage) -> None:
    """And not after the ten seconds that a beginning may take."""
    with remote(stage.stage) as (head, lost):
        head.order(Begin(3, LAYERS, 1, Peer("next", "127.0.0.1:1"), 0))
        with pytest.raises(StageLost) as raised:
            head.answered(Begun, 3, 2)
        assert (raised.value.stage, raised.value.epoch) == ("next", 3)
        assert lost.get(timeout=1).stage == "next"
