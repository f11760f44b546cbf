"""Which requests two engines may share, and what each of them is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deepinfer.control_plane.gateway.kv_transfer import prefill_call, transfer_in, with_transfer
from deepinfer.engine_shim.frames import EngineCall

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def call(path: str, body: bytes) -> EngineCall:
    return EngineCall("POST", path, headers=((b"content-length", b"%d" % len(body)), (b"x", b"y")), body=body)


@pytest.mark.parametrize(
    ("path", "fields", "is_for_two"),
    [
        (CHAT, {"messages": []}, True),
        (CHAT, {"messages": [], "n": 1, "best_of": None, "echo": False}, True),
        (CHAT, {"messages": [], "n": 2}, False),
        (CHAT, {"messages": [], "prompt_logprobs": 1}, False),
        (COMPLETIONS, {"prompt": "[1] is a footnote"}, True),
        (COMPLETIONS, {"prompt": [1, 2]}, True),
        (COMPLETIONS, {"prompt": ["one", "two"]}, False),
        (COMPLETIONS, {"prompt": [[1], [2]]}, False),
        (COMPLETIONS, {"prompt": "x", "echo": True}, False),
    ],
)
def test_two_may_share_one_answer_to_one_prompt(path: str, fields: dict[str, Any], is_for_two: bool) -> None:
    assert (prefill_call(call(path, json.dumps(fields).encode())) is not None) is is_for_two


def test_the_first_is_asked_for_one_token_and_the_second_for_all() -> None:
    body = (
        b'{"messages": [{"content":  "\\u00e4"}], "stream_options": {}, "stream": true, "max_tokens": 9, "seed": 1e0}'
    )
    first = prefill_call(call(CHAT, body))
    assert first is not None
    asked = json.loads(first.body)
    transfer = asked.pop("kv_transfer_params")
    assert transfer["do_remote_decode"] is True and transfer["remote_host"] is None
    assert asked == {"messages": [{"content": "ä"}], "stream": False, "max_tokens": 1, "seed": 1.0}
    assert dict(first.headers) == {b"content-length": b"%d" % len(first.body), b"x": b"y"}
    second = with_transfer(call(CHAT, body), transfer_in(b'{"kv_transfer_params": {"a":  [1, null]}, "b": 2}'))
    assert json.loads(second.body) == json.loads(body) | {"kv_transfer_params": {"a": [1, None]}}
    assert dict(second.headers)[b"content-length"] == b"%d" % len(second.body)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"kv_transfer_params": null}', b'{"kv_transfer_params": {}}'])
def test_an_answer_may_say_nothing_of_a_transfer(answer: bytes) -> None:
    assert transfer_in(answer) == b""


def test_what_is_no_json_is_for_one() -> None:
    assert prefill_call(call(CHAT, b"\xff")) is None
