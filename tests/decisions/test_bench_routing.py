"""What `make bench-routing` says of its runs: which sessions they have, how much could be cached, who is compared."""

from __future__ import annotations

from dataclasses import astuple

import pytest

from benchmarks.routing.conversing import Turn
from benchmarks.routing.figures import OURS, PEERS, Figures, Policy, figures, last_line, mean, table
from benchmarks.routing.oracle import Tokens, cached_share
from benchmarks.routing.sessions import SHAPES, Shape, sessions

BLOCK = 4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_a_seed_makes_the_same_sessions_and_another_one_others(shape: Shape) -> None:
    made = sessions(shape, 1)
    assert made == sessions(shape, 1)
    assert [session.number for session in made] != [session.number for session in sessions(shape, 2)]
    assert not {session.system for session in made} & {session.system for session in sessions(shape, 2)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_groups_share_a_system_prompt_and_no_question_comes_twice(shape: Shape) -> None:
    made = sessions(shape, 1)
    questions = [question for session in made for question in session.questions]
    assert len({session.system for session in made}) == shape.groups
    assert len(set(questions)) == len(questions) == shape.sessions * shape.turns


def tokens(prompt: str, answer: str = "") -> Tokens:
    """A letter each."""
    return Tokens([ord(letter) for letter in prompt], [ord(letter) for letter in answer])


@pytest.mark.parametrize(
    ("turns", "cached"),
    [
        ([tokens("aaaabbbbc")], 0),
        ([tokens("aaaabbbbc"), tokens("aaaabbbbd")], 8),
        ([tokens("aaaabbbb"), tokens("aaaabbbb")], 4),  # its last token is always computed, so its block is too
        ([tokens("aaaabbbbc"), tokens("xaaabbbbd")], 0),  # what follows on something else is something else
        ([tokens("aaaab", "ccc"), tokens("aaaabcccd")], 8),  # an answer is part of the next prompt
        ([tokens("aaaab"), tokens("z" * 99), tokens("aaaac")], 4),  # nothing is ever evicted
    ],
)
def test_what_could_have_been_cached(turns: list[Tokens], cached: int) -> None:
    assert cached_share(turns, BLOCK) == cached / sum(len(turn.prompt) for turn in turns)


def turn(first_token: float, prompt: int = 100, cached: int = 0) -> Turn:
    return Turn((), "", prompt, cached, 0.0, first_token)


def test_a_run_s_figures_weigh_prompts_by_their_tokens() -> None:
    found = figures([turn(1.0, 100, 0), turn(2.0, 300, 300)], 0.9, 60.0)
    assert astuple(found) == pytest.approx((0.75, 0.9, 1.5, 1.9, 60.0))
    assert astuple(mean([found, Figures(0.25, 0.7, 0.5, 0.1, 20.0)])) == pytest.approx((0.5, 0.8, 1.0, 1.0, 40.0))


FOUND = {
    ("easy", Policy(OURS, "kv")): Figures(0.80, 0.85, 0.4, 0.6, 1.0),
    ("easy", Policy(PEERS, "kv_aware")): Figures(0.90, 0.85, 0.5, 0.5, 1.0),
    ("hard", Policy(OURS, "kv")): Figures(0.78, 0.80, 0.3, 0.8, 1.0),
    ("hard", Policy(OURS, "random")): Figures(0.99, 0.80, 0.1, 0.1, 1.0),
    ("hard", Policy(PEERS, "kv_aware")): Figures(0.60, 0.80, 0.5, 1.0, 1.0),
    ("hard", Policy(PEERS, "sticky_least_loaded")): Figures(0.70, 0.80, 0.6, 2.0, 1.0),
}


def test_the_last_line_compares_kv_with_the_best_peer_and_tells_the_worse_shape() -> None:
    assert last_line(FOUND) == (
        "bench-routing cached_gain_points=8.00 oracle_share=0.975 ttft_mean=0.800 ttft_p90=1.200"
    )


def test_what_was_not_run_is_nobody_s_best() -> None:
    alone = {key: of for key, of in FOUND.items() if key[1].side == OURS}
    assert last_line(alone) == "bench-routing cached_gain_points=nan oracle_share=0.975 ttft_mean=nan ttft_p90=nan"
    assert "nan" in last_line({})


def test_the_table_has_a_row_for_each_policy_and_shape() -> None:
    head, *rows = table(FOUND).splitlines()
    assert head.split()[:2] == ["shape", "policy"]
    assert [row.split()[:3] for row in rows][2:4] == [
        ["hard", "deepinfer:kv", "78.0"],
        ["hard", "deepinfer:random", "99.0"],
    ]
