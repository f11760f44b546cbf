"""A plain chat is read as any other body would be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinfer.control_plane.gateway.body import read_json
from deepinfer.control_plane.gateway.plain_chat import PlainChat, plain_chat
from deepinfer.fleet.errors import InvalidRequest

HI: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
VALUES = (
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text() | st.just(["a"])
)
NAMES = st.sampled_from([*PlainChat.__struct_fields__, "image_url", "kv_transfer_params", "anything"])


@given(st.dictionaries(NAMES, VALUES))
def test_what_is_plain_would_have_been_let_in_and_says_the_same(more: dict[str, Any]) -> None:
    body = json.dumps({**HI, **more}).encode()
    chat = plain_chat(body)
    if chat is not None:
        fields = read_json(body, frozenset())
        assert (chat.model, chat.max_tokens, chat.n) == (fields["model"], fields.get("max_tokens"), fields.get("n"))


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]},
        {"messages": [{"role": "user", "content": "hi", "image": "http://a"}]},
        {"n": 129},
        {"priority": 1},
        {"kv_transfer_params": {}},
        {"bootstrap_host": "a"},
        {"tools": []},
        {"model": 7},
    ],
    ids=str,
)
def test_the_rest_is_not_plain(more: dict[str, Any]) -> None:
    assert plain_chat(json.dumps({**HI, **more}).encode()) is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":"\xff","messages":[]}', b'{"model":"a","messages":[]}}'])
def test_what_cannot_be_read_is_not_plain(body: bytes) -> None:
    assert plain_chat(body) is None
    with pytest.raises(InvalidRequest):
        read_json(body, frozenset())


def test_of_a_name_said_twice_the_last_value_counts_for_both() -> None:
    body = b'{"model":"one","messages":[],"model":"two"}'
    chat = plain_chat(body)
    assert chat is not None and chat.model == read_json(body, frozenset())["model"] == "two"
