"""How layers are laid over devices: value tables, and what holds for any model and devices."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from deepinfer.planning.cuts import Wanted, cheapest, costs_of, in_any_order, in_order
from deepinfer.planning.memory import Memory
from deepinfer.planning.plan import LayersDoNotAddUp, Plan, plan, plan_by_hand
from deepinfer.planning.refusal import Refusal
from deepinfer.planning.speed import Part, Speed, SpeedSource
from deepinfer.planning.split import Split
from deepinfer.planning.task import Objective, OfferedDevice, Task
from tests.planning_values import GB, devices, llama_8b, model, task


def planned(asked: Task) -> Plan:
    made = plan(asked)
    assert isinstance(made, Plan), made
    return made


def refused(asked: Task) -> Refusal:
    made = plan(asked)
    assert isinstance(made, Refusal), made
    return made


def counts(made: Plan) -> list[int]:
    return [stage.stop - stage.start for stage in made.stages]


def names(made: Plan) -> list[str]:
    return [stage.device for stage in made.stages]


@pytest.mark.parametrize(
    ("gigabytes", "reserve", "expected"),
    [
        ((11, 32, 32), 2, [5, 13, 14]),
        ((32, 11, 32), 2, [13, 5, 14]),
        ((32, 32, 11), 2, [13, 14, 5]),
        ((16, 16, 16), 2, [10, 11, 11]),
        ((24, 24), 2, [16, 16]),
        ((24,), 2, [32]),
        ((6, 40), 2, [4, 28]),
        ((6, 40), 5, [2, 30]),  # what fits beside the reserve is a cap
        ((2.1, 40), 2, [32]),  # nothing fits beside it
        ((1.2, 40, 40), 0.5, [1, 15, 16]),
    ],
)
def test_layers_go_by_share_of_memory(gigabytes: tuple[float, ...], reserve: float, expected: list[int]) -> None:
    shape = model(*[436_000_000] * 32)
    assert counts(planned(task(shape, devices(*gigabytes), reserve_bytes=int(reserve * GB)))) == expected


def test_the_worked_example_with_a_real_model() -> None:
    made = planned(task(llama_8b(), devices(11, 32, 32), context=4096, concurrency=8, reserve_bytes=2 * GB))
    assert counts(made) == [5, 13, 14]
    assert made.stages[0].weight_bytes == 5 * 436_224_000 + 128_256 * 4096 * 2
    assert made.stages[1].kv_bytes == 13 * 4096 * 8 * 4096
    least = min(made.stages, key=lambda stage: stage.free_bytes / stage.layers)
    more = made.prediction.kv_tokens - 8 * 4096
    assert 0 <= least.free_bytes - more * least.layers * 4096 < 16 * least.layers * 4096
    assert all(stage.reserve_bytes == 2 * GB and stage.free_bytes >= 0 for stage in made.stages)


def test_rounding_gives_no_layer_to_who_has_no_room_for_it() -> None:
    """As in exo's PR #2227: shares are 5.5 and 4.5, and the spare layer overfills b by 50 MB."""
    tight = task(model(*[1_710_000_000] * 10), devices(11, 9), reserve_bytes=GB // 2)
    assert counts(planned(tight)) == [6, 4]
    by_hand = plan_by_hand(tight, (5, 5))
    assert isinstance(by_hand, Refusal)
    assert [(short.device, short.missing_bytes) for short in by_hand.shortfalls] == [("b", 50_000_000)]
    assert by_hand.sentences[-1] == "The automatic split, 6,4, fits."


def test_embedding_head_and_a_tied_copy_are_charged_where_they_lie() -> None:
    shape = model(*[GB] * 10, embedding_bytes=3 * GB, tied=True)
    assert counts(planned(task(shape, devices(8, 8.1)))) == [5, 5]
    assert counts(planned(task(shape, devices(7.9, 9.1)))) == [4, 6]
    assert isinstance(plan(task(shape, devices(7.9, 8.1))), Refusal)  # 16 GB, and the copy makes 16
    untied = shape.model_copy(update={"tied": False, "head_bytes": GB})
    assert counts(planned(task(untied, devices(7.9, 7.1)))) == [4, 6]


def test_layers_of_unlike_size_are_counted_by_their_bytes() -> None:
    shape = model(4 * GB, 4 * GB, GB, GB, GB, GB)
    assert counts(planned(task(shape, devices(8.1, 8.1)))) == [2, 4]
    assert counts(planned(task(shape, devices(5.1, 8.1)))) == [1, 5]


def test_where_the_order_given_does_not_fit_another_one_is_taken_and_told() -> None:
    made = planned(task(model(*[GB] * 4, embedding_bytes=4 * GB), devices(2.1, 7)))
    assert (names(made), counts(made)) == (["b", "a"], [3, 1])
    assert "The order given has no room for that: the pipeline goes b and a." in made.why[0]


def test_an_order_that_fits_is_kept_though_another_one_is_nearer_to_the_shares() -> None:
    shape = model(*[GB] * 6, embedding_bytes=2 * GB)
    assert (names(planned(task(shape, devices(4, 6))))) == ["a", "b"]
    assert counts(planned(task(shape, devices(4, 6)))) == [2, 4]
    assert (names(planned(task(shape, devices(2, 6, 6))))) == ["b", "a", "c"]  # a could not go first


def test_the_head_has_the_first_layers_where_that_is_asked_for() -> None:
    shape = model(*[GB] * 6, embedding_bytes=2 * GB)
    assert names(planned(task(shape, devices(3, 6, 6), head_first=True))) == ["a", "b", "c"]
    assert isinstance(plan(task(shape, devices(2, 6, 6), head_first=True)), Refusal)
    offered = (fast(40, 9, "head"), fast(40, 1, "quick"))
    made = planned(task(shape, offered, head_first=True))
    assert (names(made), counts(made)) == (["head", "quick"], [1, 5])


def test_a_device_that_can_hold_no_layer_is_named() -> None:
    made = planned(task(model(*[GB] * 4), devices(0.9, 3, 3)))
    assert (names(made), [left.device for left in made.left_out]) == (["b", "c"], ["a"])
    assert made.left_out[0].why == "a cannot hold a single layer: left out."


def test_keys_and_values_are_held_for_whole_blocks_of_each_request() -> None:
    asked = task(model(GB, kv_bytes=1000), devices(24), context=17, concurrency=3)
    assert planned(asked).stages[0].kv_bytes == 3 * 32 * 1000


def test_by_default_a_gibibyte_is_reserved_and_an_eighth_at_most() -> None:
    made = planned(task(model(*[1000] * 2), devices(24, 0.8), reserve_bytes=None))
    assert {stage.device: stage.reserve_bytes for stage in made.stages} == {"a": 1 << 30, "b": GB // 10}


def fast(gigabytes: float, layer_ms: float, name: str) -> OfferedDevice:
    return OfferedDevice(name=name, memory_bytes=int(gigabytes * GB), layer_seconds=layer_ms / 1000)


def test_for_throughput_layers_go_by_measured_speed() -> None:
    offered = (fast(40, 1, "slow"), fast(25, 0.5, "fast"))
    made = planned(task(model(*[GB] * 30), offered, concurrency=64, hop_seconds=0))
    assert counts(made) == [10, 20]
    assert "measured speed" in made.why[0]
    assert "(18,12)" in made.why[1] and "49 % slower" in made.why[1]
    assert {stage.speed for stage in made.stages} == {SpeedSource.MEASURED}


def test_memory_caps_what_speed_would_give() -> None:
    offered = (fast(40, 1, "slow"), fast(17.5, 0.5, "fast"))
    assert counts(planned(task(model(*[GB] * 30), offered, concurrency=64))) == [13, 17]


def test_for_a_lone_request_who_only_adds_hops_is_left_out_and_named() -> None:
    offered = (fast(20, 1, "near"), fast(40, 1, "alone"), fast(40, 5, "slow"))
    made = planned(task(model(*[GB] * 30), offered, hop_seconds=0.003))
    assert (names(made), counts(made)) == (["alone"], [30])
    assert made.prediction.seconds_per_token == pytest.approx(0.030, rel=0.01)
    assert [left.why for left in made.left_out] == [
        "near makes it 20 % slower: left out.",
        "slow makes it 33 % slower: left out.",
    ]


def test_for_throughput_a_device_too_slow_for_one_layer_is_left_out() -> None:
    offered = (fast(40, 1, "a"), fast(40, 1, "b"), fast(40, 60, "snail"))
    made = planned(task(model(*[GB] * 30), offered, concurrency=64))
    assert counts(made) == [15, 15]
    assert [(left.device, round(left.slower or 0)) for left in made.left_out] == [("snail", 3)]


def test_without_known_speeds_memory_alone_decides_and_that_is_said() -> None:
    offered = (*devices(24), OfferedDevice(name="cpu", memory_bytes=24 * GB, kind="cpu"))
    made = planned(task(model(*[GB] * 30), offered, concurrency=64))
    assert counts(made) == [15, 15]
    assert "a and cpu is only guessed" in made.why[-1]
    assert made.stages[1].seconds > 10 * made.stages[0].seconds


def test_the_prediction_is_that_of_the_formulas() -> None:
    """Two stages of 10 ms for a lone request, 12.5 for six; 1 ms a hop, and two groups go round in 27 ms."""
    shape = model(*[GB] * 20)
    offered = tuple(fast(40, 1, name).model_copy(update={"kind": "none"}) for name in "ab")
    asked = task(shape, offered, concurrency=12, hop_seconds=0.001)
    made = plan_by_hand(asked, (10, 10))
    assert isinstance(made, Plan)
    assert made.prediction.seconds_per_token == pytest.approx(0.022)
    assert (made.prediction.groups, made.prediction.requests_in_a_group) == (2, 6)
    assert made.prediction.tokens_per_second == pytest.approx(12 / 0.027)


def test_what_was_told_by_hand_is_checked_and_compared() -> None:
    asked = task(model(*[GB] * 30), (fast(40, 1, "a"), fast(40, 1, "b")), concurrency=64)
    made = plan_by_hand(asked, (20, 10))
    assert isinstance(made, Plan)
    assert counts(made) == [20, 10]
    assert made.warnings == ("The automatic split, 15,15, is better: this is 24 % slower.",)
    even = plan_by_hand(asked, (15, 15))
    assert isinstance(even, Plan) and even.warnings == ()
    too_long = plan_by_hand(asked.model_copy(update={"context": 200_000}), (15, 15))
    assert isinstance(too_long, Refusal) and "tokens at most" in too_long.sentences[0]
    alone = plan_by_hand(asked, (30, 0))
    assert isinstance(alone, Plan) and names(alone) == ["a"]
    assert alone.left_out[0].why == "no layers were given to it"


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ((20, 9), "29 together, and the model has 30"),
        ((31, -1), "30 together"),
        ((30,), "for 1 devices"),
        ((), "for 0"),
    ],
)
def test_layers_that_do_not_add_up_are_refused(told: Sequence[int], said: str) -> None:
    with pytest.raises(LayersDoNotAddUp, match=said):
        plan_by_hand(task(model(*[GB] * 30), devices(40, 40)), told)


def test_a_refusal_says_who_lacks_how_much_and_what_would_fit() -> None:
    asked = task(llama_8b(), devices(9, 11), context=32_768, concurrency=4, reserve_bytes=GB)
    said = refused(asked)
    assert [short.device for short in said.shortfalls] == ["a", "b"]
    assert said.sentences[0].startswith("The model does not fit: 32,768 tokens for 4 requests at once need ")
    assert "a lacks 8.0 GiB: its share, layers 0-13, needs 15.4 GiB, and it offers 7.5 GiB beside" in said.sentences[1]
    assert said.fitting_context == 2416 and said.fitting_concurrency is None
    assert said.sentences[-1] == "What would fit: 2,416 tokens for 4 requests at once."
    fits = asked.model_copy(update={"context": said.fitting_context})
    assert isinstance(plan(fits), Plan)
    assert isinstance(plan(fits.model_copy(update={"context": said.fitting_context + 16})), Refusal)


def test_a_refusal_says_how_many_requests_would_fit() -> None:
    asked = task(llama_8b(), devices(13, 13), context=4096, concurrency=64, reserve_bytes=GB)
    said = refused(asked)
    assert said.fitting_concurrency
    assert f"or 4,096 tokens for {said.fitting_concurrency} requests at once." in said.sentences[-1]
    assert isinstance(plan(asked.model_copy(update={"concurrency": said.fitting_concurrency})), Plan)
    assert isinstance(plan(asked.model_copy(update={"concurrency": said.fitting_concurrency + 1})), Refusal)


def test_other_refusals() -> None:
    shape = llama_8b(longest_context=8192)
    assert "takes 8,192 tokens at most" in refused(task(shape, devices(80), context=8193)).sentences[0]
    assert "weights alone do not fit" in refused(task(shape, devices(8, 7))).sentences[-1]
    assert "no device" in refused(task(shape, ())).sentences[0]
    split_up = refused(task(model(*[10 * GB] * 2), devices(9, 9, 9)))
    assert "no cut between layers fits them" in split_up.sentences[0]


def test_a_plan_and_a_refusal_are_records_that_can_be_stored() -> None:
    asked = task(llama_8b(), devices(24, 24), context=4096)
    assert Task.model_validate_json(asked.to_json()) == asked
    assert Plan.model_validate_json(planned(asked).to_json()) == planned(asked)
    refusal = refused(asked.model_copy(update={"devices": devices(8)}))
    assert Refusal.model_validate_json(refusal.to_json()) == refusal


# What holds for anything.

MODELS = st.builds(
    lambda layers, embedding, head, more: model(
        *layers, embedding_bytes=embedding, head_bytes=head or 0, tied=head is None, norm_bytes=more, kv_bytes=more
    ),
    st.lists(st.integers(1, 20), min_size=1, max_size=6),
    st.integers(0, 20),
    st.none() | st.integers(0, 20),
    st.integers(0, 1),
)
DEVICES = st.lists(
    st.tuples(st.integers(0, 300), st.sampled_from([None, 1.0, 3.0, 10.0, 100.0]), st.sampled_from(["cpu", "cuda"])),
    min_size=1,
    max_size=4,
).map(
    lambda told: tuple(
        OfferedDevice(name=f"d{number}", memory_bytes=memory, bandwidth=bandwidth, kind=kind)
        for number, (memory, bandwidth, kind) in enumerate(told)
    )
)
ASKED = st.fixed_dictionaries(
    {
        "reserve_bytes": st.integers(0, 5),
        "concurrency": st.integers(1, 6),
        "hop_seconds": st.sampled_from([0.0, 0.5, 3.0]),
        "head_first": st.booleans(),
        "objective": st.sampled_from([None, Objective.LATENCY, Objective.THROUGHPUT]),
    }
)
TASKS = st.builds(lambda shape, offered, asked: task(shape, offered, **asked), MODELS, DEVICES, ASKED)


def every_cut(asked: Task) -> Iterator[tuple[Part, ...]]:
    """Of all layers into ranges, over every choice and order of devices."""
    layers = asked.model.layers
    for used in range(1, min(len(asked.devices), layers) + 1):
        for order in itertools.permutations(range(len(asked.devices)), used):
            for inner in itertools.combinations(range(1, layers), used - 1):
                ends = (0, *inner, layers)
                yield tuple(Part(device, *ends[at : at + 2]) for at, device in enumerate(order))


def fitting_cuts(asked: Task) -> list[tuple[Part, ...]]:
    memory = Memory(asked)
    fitting = [cut for cut in every_cut(asked) if all(memory.fits(p.device, p.start, p.stop) for p in cut)]
    return [cut for cut in fitting if cut[0].device == 0] if asked.head_first else fitting


@settings(deadline=None)  # cores are shared
@given(TASKS)
def test_a_plan_has_each_layer_once_and_overfills_nobody(asked: Task) -> None:
    made = plan(asked)
    if isinstance(made, Refusal):
        assert not fitting_cuts(asked)
        return
    layers = [layer for stage in made.stages for layer in range(stage.start, stage.stop)]
    assert layers == list(range(asked.model.layers))
    assert sorted([*names(made), *(left.device for left in made.left_out)]) == [d.name for d in asked.devices]
    memory = {device.name: device.memory_bytes for device in asked.devices}
    for stage in made.stages:
        held = stage.weight_bytes + stage.kv_bytes + stage.working_bytes + stage.reserve_bytes
        assert stage.layers >= 1 and stage.free_bytes >= 0
        assert held + stage.free_bytes == memory[stage.device]


@settings(deadline=None)  # cores are shared
@given(TASKS, st.data())
def test_more_memory_never_makes_it_infeasible(asked: Task, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(asked.devices) - 1))
    larger = list(asked.devices)
    more = larger[number].memory_bytes + data.draw(st.integers(1, 100))
    larger[number] = larger[number].model_copy(update={"memory_bytes": more})
    if isinstance(plan(asked), Plan):
        assert isinstance(plan(asked.model_copy(update={"devices": tuple(larger)})), Plan)


@settings(deadline=None)  # cores are shared
@given(TASKS)
def test_the_programme_finds_what_trying_everything_finds(asked: Task) -> None:
    memory, speed, count, layers = Memory(asked), Speed(asked), len(asked.devices), asked.model.layers

    def lap(part: Part) -> float:
        return speed.stage(part, 2) + speed.hop(part) if memory.fits(part.device, part.start, part.stop) else inf

    costs, wanted = costs_of(count, layers, lap), Wanted(count, frozenset(), asked.head_first)
    cuts = fitting_cuts(asked)
    in_turn = [cut for cut in cuts if [p.device for p in cut] == sorted(p.device for p in cut)]
    for orders, among in ((in_any_order(wanted), cuts), (in_order(range(count), wanted), in_turn)):
        for largest, together in ((False, sum), (True, max)):
            found = cheapest(orders, costs, largest=largest)
            assert found.cost == pytest.approx(min((together(map(lap, cut)) for cut in among), default=inf))
            assert (found.cut in among) if among else not found.cut


@settings(deadline=None)  # cores are shared
@given(TASKS)
def test_the_plan_for_latency_is_the_best_there_is_and_for_throughput_none_by_memory_is_better(asked: Task) -> None:
    made = plan(asked)
    if isinstance(made, Refusal) or any(device.bandwidth is None for device in asked.devices):
        return
    speed = Speed(asked)
    if asked.aim is Objective.LATENCY:
        best = min(map(speed.token, fitting_cuts(asked)))
        assert made.prediction.seconds_per_token <= best * 1.0051
    by_memory = speed.throughput(Split(asked).by_memory())
    if asked.aim is Objective.THROUGHPUT:
        assert made.prediction.tokens_per_second * 1.0051 >= by_memory.tokens_per_second
        most = max(speed.throughput(cut).tokens_per_second for cut in fitting_cuts(asked))
        assert made.prediction.tokens_per_second >= 0.8 * most
    assert all(left.slower is None or left.slower >= 0 for left in made.left_out)


@settings(deadline=None)  # cores are shared
@given(st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 20))
def test_among_equal_layers_it_is_the_largest_remainder_with_caps(memory: list[int], layers: int, reserve: int) -> None:
    """The rule as it is usually written: a layer each, then one after another to whom most is missing."""
    offered = tuple(OfferedDevice(name=str(number), memory_bytes=size) for number, size in enumerate(memory))
    caps = [max(0, size - reserve) for size in memory]
    given_out = [min(1, cap) for cap in caps]
    assume(sum(given_out) <= layers)
    while sum(given_out) < layers and given_out != caps:
        open_ones = [number for number, cap in enumerate(caps) if given_out[number] < cap]
        missing = {number: layers * memory[number] - given_out[number] * sum(memory) for number in open_ones}
        given_out[max(open_ones, key=lambda number: (missing[number], number))] += 1
    cut = Split(task(model(*[1] * layers), offered, reserve_bytes=reserve)).by_memory()
    in_devices_order = {part.device: part.stop - part.start for part in cut}
    if sum(given_out) < layers:
        assert not cut
    else:
        assert [in_devices_order.get(number, 0) for number in range(len(memory))] == given_out
