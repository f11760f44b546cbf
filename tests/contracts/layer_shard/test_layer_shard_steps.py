"""The head's book, over random histories: whatever is lost, nothing is forgotten, nothing chosen twice.

The stages are a sum: the next token follows from all tokens so far, so a gap, a doubled or a wrong one changes it.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from deepinfer.engine_shim.engines.layer_shard.batch import Batch, Opening, Span, StepResult
from deepinfer.engine_shim.engines.layer_shard.sampling import Choice
from deepinfer.engine_shim.engines.layer_shard.schedule import Limits
from deepinfer.engine_shim.engines.layer_shard.sequence import Sequence
from deepinfer.engine_shim.engines.layer_shard.steps import Again, Steps
from deepinfer.engine_shim.token_engine import FinishReason, SamplingParams, TokenRequest

LIMITS = Limits(sequences=4, tokens_in_a_step=64, kv_tokens=192)
MOST_UNDER_WAY = 4
SAMPLING = SamplingParams(max_tokens=12, ignore_eos=True)


def next_token(tokens: list[int], drawn: int) -> int:
    return (sum(place * token for place, token in enumerate(tokens, 1)) + 31 * drawn) % 97


def cut_of(span: Span) -> tuple[int, int, int]:
    return span.sequence, span.start, span.count


@dataclass
class Sum:
    """Stages that hold tokens instead of keys and values."""

    held: dict[int, dict[int, int]] = field(default_factory=dict)  # by a sequence's stay: place -> token
    room: dict[int, int] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)

    def compute(self, batch: Batch, token_ids: list[int]) -> StepResult:
        for stay in batch.ended:
            for table in (self.held, self.room, self.drawn):
                table.pop(stay, None)
        self.drawn |= {opening.sequence: opening.drawn for opening in batch.opened}
        tokens = iter(token_ids)
        for span in batch.spans:
            self._write(span, [next(tokens) for _ in range(span.count)])
        assert not list(tokens)
        assert sum(self.room.values()) <= LIMITS.kv_tokens
        return StepResult(batch.step, 1, tuple(self._chosen(span) for span in batch.spans if span.chooses))

    def _write(self, span: Span, tokens: list[int]) -> None:
        assert span.start + span.count <= span.capacity
        self.room[span.sequence] = max(span.capacity, self.room.get(span.sequence, 0))
        memory = self.held.setdefault(span.sequence, {})
        for place, token in enumerate(tokens, span.start):
            assert memory.get(place, token) == token, "computed once more, it is the same"
            memory[place] = token

    def _chosen(self, span: Span) -> tuple[int, Choice]:
        memory = self.held[span.sequence]
        assert sorted(memory) == list(range(span.start + span.count)), "nothing is missing"
        token = next_token([memory[place] for place in sorted(memory)], self.drawn[span.sequence])
        self.drawn[span.sequence] += 1
        return span.sequence, Choice(token)


class History:
    """Requests that are served by stages which are lost now and then."""

    def __init__(self) -> None:
        self.steps, self.stages = Steps(LIMITS), Sum()
        self.asked: list[Sequence] = []
        self.ended: set[int] = set()
        self.results: deque[StepResult] = deque()
        self.cuts: set[tuple[int, int, int]] = set()  # of each stay, what was computed together

    def ask(self, prompt: int, generated: int) -> None:
        number = len(self.asked)
        tokens = tuple((number + 7 * place) % 97 for place in range(prompt))
        request = TokenRequest(str(number), tokens, SAMPLING, min(generated, prompt - 1))
        self.asked.append(Sequence(number, request, (), prompt + SAMPLING.max_tokens, 0))
        self.steps.add(self.asked[-1])

    def abort(self, at: int) -> None:
        if self.asked:
            sequence = self.asked[at % len(self.asked)]
            self.ended.add(sequence.number)
            self.steps.remove(sequence)

    def launch(self, groups: int) -> None:
        if self.steps.under_way < MOST_UNDER_WAY and (one := self.steps.next_batch(groups)):
            self.results.append(self.stages.compute(one.batch, one.token_ids))
            self.cuts |= set(map(cut_of, one.batch.spans))

    def come_back(self) -> None:
        if self.results:
            for sequence, delta in self.steps.returned(self.results.popleft()):
                assert sequence.number not in self.ended
                if delta.finish_reason is not None:
                    assert delta.finish_reason is FinishReason.LENGTH
                    self.ended.add(sequence.number)

    def lose(self, came_back: int, *, kept: bool) -> None:
        """What had come back before is known; stages that are new hold nothing."""
        for _ in range(came_back):
            self.come_back()
        self.results.clear()
        again = self.steps.again()
        self.check_covered(again)
        if not kept:
            self.stages = Sum()
        for batch, tokens in again.filling:
            assert batch.tokens <= LIMITS.tokens_in_a_step
            assert not self.stages.compute(batch, tokens).choices
        for one in again.under_way:
            self.results.append(self.stages.compute(one.batch, one.token_ids))

    def check_covered(self, again: Again) -> None:
        """Every token that was computed is filled in or sent again, once; and none more."""
        batches = [batch for batch, _ in again.filling] + [one.batch for one in again.under_way]
        spans = [span for batch in batches for span in batch.spans]
        places = Counter((s.sequence, place) for s in spans for place in range(s.start, s.start + s.count))
        alive = [sequence for sequence in self.asked if sequence.capacity]
        assert places == Counter((s.stay, place) for s in alive for place in range(s.computed))
        assert set(map(cut_of, spans)) <= self.cuts, "computed in other pieces, tokens may have other bits"
        numbers = [batch.step for batch in batches]
        assert len(set(numbers)) == len(numbers)
        opened = Counter(o.sequence for batch in batches for o in batch.opened)
        assert all(count == 1 for count in opened.values())

    def finish(self) -> None:
        for _ in range(2000):
            if self.steps.idle and not self.results:
                return
            self.launch(1)
            self.come_back()
        raise AssertionError("it does not come to rest")

    def check_answers(self, aborted: set[int]) -> None:
        for sequence in self.asked:
            tokens = list(sequence.request.token_ids)
            for drawn in range(sequence.request.generated, sequence.request.generated + SAMPLING.max_tokens):
                tokens.append(next_token(tokens, drawn))
            if sequence.number in aborted:
                assert sequence.tokens == tokens[: len(sequence.tokens)]
            else:
                assert sequence.tokens == tokens


EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.integers(1, 100), st.integers(0, 20)),
    st.tuples(st.just("launch"), st.integers(1, 4), st.integers(1, 3)),
    st.tuples(st.just("come back"), st.integers(1, 4), st.just(0)),
    st.tuples(st.just("lose"), st.integers(0, 3), st.integers(0, 1)),
    st.tuples(st.just("abort"), st.integers(0, 9), st.just(0)),
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.lists(EVENTS, max_size=40))
def test_losses_change_no_answer(first: int, events: list[tuple[str, int, int]]) -> None:
    history, aborted = History(), set[int]()
    history.ask(first, 0)
    for what, one, two in events:
        match what:
            case "ask":
                history.ask(one, two)
            case "launch":
                for _ in range(two):
                    history.launch(one)
            case "come back":
                for _ in range(one):
                    history.come_back()
            case "lose":
                history.lose(one, kept=bool(two))
            case _:
                running = set(history.ended)
                history.abort(one)
                aborted |= history.ended - running
    history.finish()
    history.check_answers(aborted)


def test_a_second_loss_before_anything_came_back_sends_the_same_again() -> None:
    history = History()
    for prompt in (70, 3, 20):
        history.ask(prompt, 0)
    for _ in range(3):
        history.launch(2)
    first, second = history.steps.again(), history.steps.again()
    assert [one.batch.spans for one in first.under_way] == [one.batch.spans for one in second.under_way]
    assert [batch.spans for batch, _ in first.filling] == [batch.spans for batch, _ in second.filling]
    assert [one.batch.opened for one in first.under_way] == [one.batch.opened for one in second.under_way]


def test_openings_are_told_with_the_first_batch_even_if_nothing_was_under_way() -> None:
    history = History()
    history.ask(5, 0)
    history.launch(1)
    history.come_back()
    assert history.steps.again().under_way == ()
    one = history.steps.next_batch()
    assert one is not None
    assert [type(opening) for opening in one.batch.opened] == [Opening]
    assert one.batch.opened[0].answer == tuple(history.asked[0].answer)
