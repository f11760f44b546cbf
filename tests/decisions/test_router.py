"""Who gets a request, by what is known of the replicas: values in, a choice and its reasons out."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from deepinfer.control_plane.router.candidate import RoutedRequest
from deepinfer.control_plane.router.cost import Prospect, cost_of, price_of_work
from deepinfer.control_plane.router.forecast import Forecast
from deepinfer.control_plane.router.kv_index import KvIndex
from deepinfer.control_plane.router.outlook import Outlook
from deepinfer.control_plane.router.prefill_book import PrefillBook
from deepinfer.control_plane.router.router import Choice, Router
from deepinfer.control_plane.router.speed import Speed
from deepinfer.control_plane.router.trust import FIRST_SECONDS, Trust
from deepinfer.engine_shim.kv_chain import chain, extra_digest, root_of, token_bytes
from deepinfer.engine_shim.kv_contents import KvGroup
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.engine_shim.wire import ShimInfo, ShimPhase
from deepinfer.fleet.spec import RoutingPolicy
from tests.routed_replica import RoutedReplica

SIZE = 16
PROMPT = token_bytes(range(1000))
RATE = 1000.0


class Replica(RoutedReplica):
    """Told of by hand."""

    def told(self, now: float = 0.0, **load: float) -> None:
        self.outlook.told(EngineLoad(**{"prefill_tokens_per_second": RATE, **load}), now)  # type: ignore[arg-type]

    def holds(self, tokens: int, root: int = 0, extra: int = 0) -> None:
        self.outlook.shelf.put({0: chain(PROMPT[: 4 * tokens], SIZE, root, extra)})


def replicas(count: int = 2, policy: RoutingPolicy = RoutingPolicy.KV) -> list[Replica]:
    index = KvIndex()
    made = [Replica(f"r{number}", Outlook(f"r{number}", index.shelf()), policy) for number in range(count)]
    for replica in made:
        replica.outlook.knows(
            ShimInfo("", 1, ShimPhase.READY, "", "", 1, "sim", (), kv_block_size=SIZE, kv_blocks=1000)
        )
        replica.outlook.shelf.describe((KvGroup(0, SIZE),), SIZE)
        replica.outlook.trust.missing = ""
        replica.told()
    return made


def request(size: int = 1000, **fields: Any) -> RoutedRequest:
    exact = RoutedRequest("chat", id=b"one", prompt_tokens=size, tokens=PROMPT[: 4 * size], streams=True)
    return replace(exact, **fields)


def chosen(among: list[Replica], asked: RoutedRequest | None = None, now: float = 1.0) -> Choice[Replica]:
    return Router().choose(among, asked or request(), 0, now)


def send(among: list[Replica], router: Router, asked: RoutedRequest, now: float) -> Choice[Replica]:
    choice = router.choose(among, asked, 0, now)
    router.took(choice, 4.0)
    choice.candidate.outlook.went(choice.forecast)
    return choice


def test_a_request_goes_where_most_of_its_prompt_is() -> None:
    first, second = replicas()
    second.holds(800)
    choice = chosen([first, second])
    assert choice.candidate is second
    assert choice.forecast.cached_tokens == 800 and choice.forecast.from_index
    assert choice.forecast.first_seconds == pytest.approx(0.2)
    assert [round(p.cached_tokens) for p in choice.decision.prospects] == [0, 800]


def test_but_not_behind_a_queue_that_takes_longer_than_computing_it_again() -> None:
    first, second = replicas()
    second.holds(800)
    second.told(waiting_prefill_tokens=700, running=1)
    assert chosen([first, second]).candidate is second
    second.told(waiting_prefill_tokens=5000, running=5)
    assert chosen([first, second]).candidate is first


def test_a_fast_engine_gets_a_cold_prompt_before_a_slow_one_a_warm_one() -> None:
    slow, fast = replicas()
    slow.holds(500)
    slow.told(prefill_tokens_per_second=100.0)
    fast.told(prefill_tokens_per_second=10_000.0)
    assert chosen([slow, fast]).candidate is fast


def test_who_has_not_told_its_rate_is_taken_for_as_fast_as_the_fastest() -> None:
    known, new = replicas()
    new.outlook.speed.prefill_rate = 0.0
    known.told(prefill_tokens_per_second=50_000.0)
    assert chosen([known, new]).decision.prospects[1].prefill_rate == 50_000


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    first, second = replicas()
    second.holds(1000)
    assert chosen([first, second], request(992)).forecast.cached_tokens == 976


def test_what_a_request_is_about_to_fill_counts_as_soon_as_it_was_sent() -> None:
    router, among = Router(), replicas()
    among[1].told(waiting_prefill_tokens=400, running=1)
    choices = [send(among, router, request(800), now=0.0) for _ in range(2)]
    assert [choice.candidate.placement for choice in choices] == ["r0", "r0"]  # r1 would be free 0.4 s earlier
    assert choices[1].forecast.cached_tokens == pytest.approx(0.9 * 784)  # the last token is always computed
    assert not choices[1].forecast.from_index  # it cannot be held against the index


def test_a_burst_that_has_nothing_in_common_is_spread() -> None:
    router, among = Router(), replicas(4)
    prompts = [token_bytes(range(n * 1000, n * 1000 + 500)) for n in range(4)]
    choices = [send(among, router, request(500, tokens=tokens), now=1.0) for tokens in prompts]
    assert {choice.candidate.placement for choice in choices} == {"r0", "r1", "r2", "r3"}


def test_adapters_and_salts_have_blocks_of_their_own() -> None:
    first, second = replicas()
    first.others = second.others = ("tuned",)
    first.holds(960)
    second.holds(480, root_of("tuned"))
    assert chosen([first, second], request(model="tuned")).candidate is second
    assert chosen([first, second]).candidate is first
    second.holds(960, extra=extra_digest(["mine"]))
    assert chosen([first, second], request(salt="mine")).candidate is second


def test_without_tokens_or_trust_a_text_goes_where_its_begin_went() -> None:
    router, among = Router(), replicas()
    body = b"all the world is a stage " * 200
    asked = request(tokens=b"", no_tokens="its model has no tokenizer", text=body)
    first = send(among, router, asked, 1.0)
    assert first.decision.prospects[0].known_by == "" and not first.forecast.from_index
    among[0].outlook.over(first.forecast, 2.0)
    again = router.choose(among, asked, 0, 30.0)
    assert again.candidate is first.candidate
    prospect = next(p for p in again.decision.prospects if p.placement == again.candidate.placement)
    assert prospect.known_by == "text" and prospect.doubt == "its model has no tokenizer"
    assert 600 < prospect.cached_tokens < 900
    among[0].last_used = 1
    other = router.choose(among, request(tokens=b"", no_tokens="?", text=b"nothing of it is known " * 200), 0, 30.0)
    assert other.candidate is not first.candidate


def test_a_session_is_a_price_and_not_a_rule_for_kv_and_a_rule_for_session() -> None:
    for policy, stays in ((RoutingPolicy.KV, False), (RoutingPolicy.SESSION, True)):
        router, among = Router(), replicas(policy=policy)
        asked = request(tokens=b"", no_tokens="?", session="s1")
        first = send(among, router, asked, 1.0)
        home = first.candidate
        home.outlook.over(first.forecast, 2.0)
        assert router.choose(among, asked, 0, 20.0).candidate is home
        home.told(20.0, waiting_prefill_tokens=20_000, running=20)
        assert (router.choose(among, asked, 0, 20.0).candidate is home) is stays


def test_a_session_that_the_client_does_not_name_is_seen_by_its_text() -> None:
    router, among = Router(), replicas(policy=RoutingPolicy.SESSION)
    body = b"to be or not to be, that is the question " * 60
    home = send(among, router, request(text=body), 1.0).candidate
    assert router.choose(among, request(text=body + b"and more of it"), 0, 2.0).candidate is home
    assert router.choose(among, request(text=b"something else " * 100), 0, 2.0).candidate is not home


def test_an_engine_that_stands_still_or_is_late_is_avoided() -> None:
    for trouble in ("stalled", "late"):
        first, second = replicas()
        second.holds(990)
        if trouble == "stalled":
            second.told(stalled_seconds=1.5)
            now = 1.0
        else:
            forecast = Forecast(100, 0.0, 1.0, streams=True)
            second.outlook.went(forecast)
            now = 3.5
        choice = chosen([first, second], now=now)
        assert choice.candidate is first
        assert choice.decision.costs[1].overdue > 1.0


@pytest.mark.parametrize("gap", [0.1, 0.5])
@pytest.mark.parametrize("new_tokens", [16, 400])
def test_an_engine_that_becomes_five_times_slower_is_avoided_within_two_seconds(gap: float, new_tokens: int) -> None:
    """While it holds nearly all of every prompt, and its own timings still say what it was."""
    router, (warm, cold) = Router(), replicas()
    warm.holds(992 - new_tokens // 16 * 16)
    now, ends = 0.0, 0.0
    for number in range(20):
        now = number * gap
        asked = request(
            1000, tokens=PROMPT[: 4 * (992 - new_tokens)] + token_bytes(range(number, number + new_tokens + 8))
        )
        choice = send([warm, cold], router, asked, now)
        if choice.candidate is cold:
            break
        takes = 5 * choice.forecast.uncached_tokens / RATE + 2.0 * (new_tokens == 16)
        ends = max(now, ends) + takes
        if ends - now < gap:
            warm.outlook.began(choice.forecast, ends)
            warm.outlook.over(choice.forecast, ends)
    assert now <= 2.0
    told = next(c for c in choice.decision.told()["candidates"] if c["replica"] == "r0")
    assert told["slowness"] > 1 or told["terms"]["overdue"] > 0 or told["terms"]["wait"] > 0


def test_a_choice_explains_itself() -> None:
    first, second = replicas()
    second.holds(800)
    told = chosen([first, second]).decision.told()
    assert (told["chosen"], told["policy"], told["foreseen"]["cached_tokens"]) == ("r1", "kv", 800)
    assert [c["replica"] for c in told["candidates"]] == ["r1", "r0"]
    for candidate in told["candidates"]:
        assert candidate["seconds"] == pytest.approx(sum(candidate["terms"].values()), abs=1e-3)
    alone = chosen([second])
    assert alone.decision.why == "no other replica could answer it"
    assert alone.forecast.cached_tokens == 800  # and what it costs there counts for the next one


def prospect(**fields: float) -> Prospect:
    plain = {
        "cached_tokens": 0.0,
        "uncached_tokens": 1000.0,
        "prefill_rate": 1000.0,
        "token_seconds": 0.01,
        "token_slope": 0.0,
        "prefill_share": 0.0,
        "queue_seconds": 0.0,
        "overdue_seconds": 0.0,
        "running": 0,
        "waiting": 0,
        "unbegun": 0,
        "slowness": 1.0,
        "fixed_seconds": 0.0,
        "evicted_tokens": 0.0,
    }
    return Prospect(placement="r", known_by="kv", doubt="", **{**plain, **fields})  # type: ignore[arg-type]


def test_the_terms_are_seconds() -> None:
    cost = cost_of(prospect(queue_seconds=0.5, overdue_seconds=0.25), 100, 0.0, 0.0)
    assert (cost.wait, cost.overdue, cost.prefill, cost.first_token) == (0.5, 0.25, 1.0, 1.75)
    assert cost.answer == pytest.approx(0.1 * 100 * 0.01) and cost.holds_up == cost.delays == cost.evicts == 0.0
    assert cost_of(prospect(prefill_share=0.5), 100, 0.0, 0.0).answer == pytest.approx(16 * cost.answer)
    assert cost_of(prospect(prefill_share=0.9), 100, 0.0, 0.9).answer == pytest.approx(cost.answer)
    busy = cost_of(prospect(running=4, token_slope=0.001), 100, 0.002, 0.0)
    assert busy.holds_up == pytest.approx(0.2 * 2 * 1.0 + 0.1 * 4 * 100 * 0.001)
    assert busy.delays == pytest.approx(0.002 * 1000)
    assert cost_of(prospect(slowness=5.0, queue_seconds=0.5), 100, 0.0, 0.0).prefill == 5.0
    assert cost_of(prospect(running=12, waiting=4), 100, 0.0, 0.0).wait == pytest.approx(4 * 100 * 0.01 / 8)


def test_an_answer_costs_more_where_many_prompts_are_computed_until_these_are_long_ago() -> None:
    busy, calm = replicas()
    for second in range(20):
        new = token_bytes(range(1000 * second, 1000 * second + 600))
        forecast = chosen([busy], request(600, tokens=new), now=second).forecast
        busy.outlook.went(forecast)
        busy.outlook.began(forecast, second + 0.6)
        busy.outlook.over(forecast, second + 1.0)
    decisions = [chosen([busy, calm], now=now).decision for now in (20, 30, 100)]
    shares = [decision.prospects[0].prefill_share for decision in decisions]
    assert shares == pytest.approx([0.5, 0.1, 0.0], abs=0.05)
    dearer = [decision.costs[0].answer / decision.costs[1].answer for decision in decisions]
    assert dearer == pytest.approx([1 / (1 - share) ** 4 for share in shares])


def test_what_is_computed_anew_costs_others_nothing_until_most_replicas_have_a_queue() -> None:
    def price(*replicas: tuple[int, float]) -> float:
        return price_of_work([prospect(unbegun=unbegun, prefill_rate=rate) for unbegun, rate in replicas])

    assert price((0, 1000.0), (0, 1000.0), (9, 1000.0)) == 0.0
    assert price((1, 1000.0), (2, 2000.0), (9, 3000.0)) == pytest.approx(2 / 2000)
    assert price((50, 1000.0), (50, 1000.0)) == price((60, 1000.0), (60, 1000.0))


def test_tokens_take_longer_in_larger_batches_and_the_line_is_learned() -> None:
    speed = Speed()
    for batch in (1, 16, 4, 8, 32, 2, 16, 1, 32, 8) * 5:
        speed.told(EngineLoad(running=batch, seconds_per_output_token=0.01 + 0.001 * batch), 0.0)
    assert speed.token_slope == pytest.approx(0.001, rel=0.1)
    assert speed.token_seconds(20, 0.0) == pytest.approx(0.03, rel=0.1)


def test_an_engine_that_is_idle_again_has_told_how_fast_it_was() -> None:
    speed = Speed()
    speed.told(EngineLoad(seconds_per_output_token=0.01), 0.0)
    assert speed.token_seconds(1, 0.0) == pytest.approx(0.01)


def test_first_tokens_that_come_late_make_an_engine_slow_and_it_recovers() -> None:
    speed = Speed()
    for number in range(10):
        speed.began(0.5, 0.55, float(number))
    assert speed.slowness(10.0) == 1.0
    for number in range(4):
        speed.began(0.5, 2.5, 10.0 + number)
    assert speed.slowness(14.0) > 1.5
    for number in range(12):
        speed.began(0.5, 0.5, 14.0 + number)
    assert speed.slowness(26.0) == 1.0


def test_what_an_avoided_engine_was_is_forgotten_and_one_request_finds_out() -> None:
    speed = Speed()
    for number in range(6):
        speed.began(0.01, 0.8, float(number))
    assert speed.fixed_seconds(6.0) > 0.5
    assert speed.fixed_seconds(40.0) < 0.02
    speed.began(0.01, 0.8, 40.0)
    assert speed.fixed_seconds(40.0) == pytest.approx(0.79, rel=0.05)


def test_a_slow_engine_that_gets_no_requests_is_thought_to_be_as_fast_as_it_used_to_be() -> None:
    speed = Speed()
    for number in range(20):
        speed.told(EngineLoad(1, 0, 0, 0, 1000.0, 0.01), float(number))
    for number in range(10):
        speed.told(EngineLoad(1, 0, 0, 0, 100.0, 0.1), 20.0 + number)
    assert speed.rate(31.0) == 100.0 and speed.token_seconds(1, 31.0) > 0.05
    assert speed.rate(80.0) > 500.0 and speed.token_seconds(1, 80.0) < 0.03


def test_an_index_that_is_wrong_again_and_again_is_not_used_for_longer_and_longer() -> None:
    trust, now = Trust(), 0.0
    trust.missing = ""
    assert not any(trust.compared(500, 480, 1000, now) for _ in range(50))
    lasted = []
    for _ in range(3):
        while not trust.compared(900, 0, 1000, now):
            assert not trust.why_not(now)
        assert "less were cached" in trust.why_not(now)
        lasted.append(trust.until - now)
        now = trust.until
    assert lasted == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert trust.why_not(now) == ""


def test_one_prompt_that_was_foreseen_wrongly_is_no_reason() -> None:
    trust = Trust()
    trust.missing = ""
    assert not trust.compared(1000, 0, 1000, 0.0)
    assert not any(trust.compared(0, 0, 1000, 0.0) for _ in range(4))


def test_prompts_of_other_lengths_than_foreseen_are_a_reason_when_two_in_a_row_are() -> None:
    trust, now = Trust(), 0.0
    trust.missing = ""
    assert not any(trust.counted(100, 101 - number % 2, now) for number in range(10))
    for lasts in (FIRST_SECONDS, 2 * FIRST_SECONDS):
        assert [trust.counted(100, 101, now) for _ in range(3)] == [False, True, False]
        assert trust.why_not(now) == "its prompts have more or fewer tokens than were foreseen"
        assert trust.until == now + lasts
        now = trust.until
        assert trust.why_not(now) == ""


@pytest.mark.parametrize(("exact", "wrong"), [(True, True), (False, False)])
def test_only_prompts_of_which_the_tokens_were_foreseen_are_counted(exact: bool, wrong: bool) -> None:
    router, among = Router(), replicas(1)
    asked = request() if exact else request(tokens=b"", no_tokens="?")
    for number in range(3):
        choice = send(among, router, asked, 0.0)
        told = choice.candidate.outlook.compared(choice.forecast, 999, -1, 1.0)  # it does not tell what was cached
        choice.candidate.outlook.over(choice.forecast, 1.0)
        assert told is (wrong and number == 1)


def test_what_an_idle_engine_has_not_filled_it_will_not_fill() -> None:
    router, (replica, other) = Router(), replicas()
    other.told(waiting_prefill_tokens=5000, running=1)
    choice = send([replica, other], router, request(800), 0.0)
    replica.told(0.1, running=1)
    assert len(replica.outlook.claims) == 50
    replica.outlook.over(choice.forecast, 1.0)
    replica.told(1.1)
    assert not replica.outlook.claims


def test_an_engine_that_has_work_and_says_nothing_is_late_whatever_its_answers_are() -> None:
    first, second = replicas()
    second.holds(990)
    second.told(0.0, running=1)  # it tells what runs
    second.told(1.0)
    whole = Forecast(1000, 990.0, 100.0, streams=False)
    assert chosen([first, second], now=100.0).decision.costs[1].overdue == 0.0  # it has had nothing to say
    second.outlook.went(whole)
    assert chosen([first, second], now=101.0).candidate is second
    second.told(100.1, running=1, waiting_prefill_tokens=500)
    assert chosen([first, second], now=101.5).decision.costs[1].overdue == 0.0
    late = chosen([first, second], now=104.1)
    assert late.candidate is first and late.decision.costs[1].overdue > 1.0
    second.outlook.began(whole, 104.2)
    assert chosen([first, second], now=104.2).candidate is second
    second.told(104.3)  # done; the client is still to read the answer
    assert chosen([first, second], now=200.0).decision.costs[1].overdue == 0.0


def test_an_engine_that_never_tells_what_runs_is_not_waited_for() -> None:
    first, second = replicas()
    second.outlook.went(Forecast(10, 0.0, 0.0, streams=False))
    assert chosen([first, second], now=100.0).decision.costs[1].overdue == 0.0


def forecast(tokens: int, now: float, *, streams: bool = True) -> Forecast:
    return Forecast(tokens, 0.0, now, streams=streams)


def test_the_book_knows_what_is_left_of_what_was_sent() -> None:
    book = PrefillBook()
    first, second = forecast(1000, 0.0), forecast(500, 0.2)
    book.sent(first)
    book.sent(second)
    assert book.seconds(RATE, 0.2) == pytest.approx((1.3, 0.0, 1.5))
    book.computed(first, 1.0)
    assert book.seconds(RATE, 1.2) == pytest.approx((0.3, 0.0, 0.5))
    assert book.seconds(RATE, 3.0) == pytest.approx((0.0, 2.0 - 0.75 - 0.1, 0.5))
    book.computed(second, 3.0)
    assert book.seconds(RATE, 9.0) == (0.0, 0.0, 0.0)


def test_what_others_sent_is_in_the_engines_word_and_is_a_level() -> None:
    book = PrefillBook()
    own = forecast(1000, 0.0)
    book.sent(own)
    book.told(3000, RATE, 0.0)
    assert book.seconds(RATE, 0.0)[0] == pytest.approx(3.0)
    book.told(3000, RATE, 0.0)  # said twice, it is still that much
    assert book.seconds(RATE, 0.5)[0] == pytest.approx(2.0)
    book.told(0, RATE, 0.6)
    book.computed(own, 0.6)
    assert book.seconds(RATE, 0.6)[0] == 0.0


def test_the_prefill_of_a_whole_answer_is_over_when_it_should_be() -> None:
    book = PrefillBook()
    book.sent(forecast(1000, 0.0, streams=False))
    assert book.seconds(RATE, 0.5) == pytest.approx((0.5, 0.0, 1.0))
    assert book.seconds(RATE, 2.0) == (0.0, 0.0, 0.0)


def test_equal_costs_take_turns() -> None:
    among = replicas(3)
    taken = []
    for turn in range(1, 10):
        choice = chosen(among, request(16, tokens=token_bytes([turn] * 16)))
        taken.append(choice.candidate.placement)
        choice.candidate.last_used = turn
    assert taken == ["r0", "r1", "r2"] * 3
