"""An answer ends at its first stop string, and no part of one gets out."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.engine_shim.text.stop_strings import StopStrings

FEW_LETTERS = st.text(alphabet="ab\n", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), min_size=1, max_size=3)


def fed(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[list[str], str | None]:
    """What leaves after each piece, and at the end."""
    watched = StopStrings(stops, include=include)
    out = [watched.feed(piece) for piece in pieces]
    return [*out, watched.flush()], watched.found


@pytest.mark.parametrize(
    ("stops", "pieces", "out", "found"),
    [
        ([], ["ab", "c"], ["ab", "c", ""], None),
        (["stop"], ["a st", "op b"], ["a ", "", ""], "stop"),
        (["stop"], ["a st", "ay"], ["a ", "stay", ""], None),
        (["stop"], ["a sto"], ["a ", "sto"], None),
        (["\n\n"], ["a\n", "\nb"], ["a", "", ""], "\n\n"),
        (["bc", "abcd"], ["abcd"], ["a", ""], "bc"),  # ends first
        (["b", "ab"], ["xab"], ["x", ""], "ab"),  # ends together: the longer one
        (["aab"], ["aaab"], ["a", ""], "aab"),
    ],
)
def test_table(stops: list[str], pieces: list[str], out: list[str], found: str | None) -> None:
    assert fed(stops, pieces) == (out, found)


def test_the_stop_string_is_kept_when_wanted() -> None:
    assert fed(["stop"], ["a st", "op b"], include=True) == (["a ", "stop", ""], "stop")


@given(text=FEW_LETTERS, stops=STOPS)
def test_no_part_of_a_stop_string_gets_out(text: str, stops: list[str]) -> None:
    out, found = fed(stops, list(text))
    whole = "".join(out)
    assert all(stop not in whole for stop in stops)
    if found is None:
        assert whole == text
    else:
        assert text.startswith(whole + found)


@given(text=FEW_LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 24)), include=st.booleans())
def test_it_does_not_matter_how_the_text_came(text: str, stops: list[str], cuts: list[int], include: bool) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[start:end] for start, end in pairwise(edges)]
    out, found = fed(stops, pieces, include=include)
    letters, found_by_letters = fed(stops, list(text), include=include)
    assert ("".join(out), found) == ("".join(letters), found_by_letters)
