"""What the end of an answer says of itself."""

from __future__ import annotations

import pytest
from msgspec import DecodeError

from deepinfer.control_plane.gateway.usage import END_BYTES, Tokens, Told, end_of, finished_reason, tokens_told, told_by

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"length","stop_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":13,"total_tokens":45,"completion_tokens":32}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = (
    b'{"choices": [{"message": {"content": "hi"}, "finish_reason": "tool_calls"}], "usage": {"prompt_tokens": 3,'
    b' "completion_tokens_details": {"reasoning_tokens": 9}, "completion_tokens": 5}, "kv_transfer_params": null}'
)
ANTHROPIC = (
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens"},'
    b'"usage":{"cache_read_input_tokens":7,"input_tokens":4,"output_tokens":2}}\n\n'
)
FORGED = rb'{"choices":[{"text":"\"usage\":{\"prompt_tokens\":9},\"finish_reason\":\"length\"","finish_reason":"a"}]}'


@pytest.mark.parametrize(
    ("pieces", "tokens", "reason"),
    [
        ((LAST, USAGE, DONE), Tokens(13, 32), "length"),
        ((CHUNK, LAST, DONE), None, "length"),
        ((b"", b"", CHUNK + LAST + USAGE + DONE), Tokens(13, 32), "length"),
        ((LAST + USAGE[:40], USAGE[40:], DONE), Tokens(13, 32), "length"),
        ((b"", b"", WHOLE), Tokens(3, 5), "stop"),
        ((ANTHROPIC, b"", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'), Tokens(4, 2), "length"),
        ((b"", b"", b'{"data":[],"usage":{"prompt_tokens":6,"total_tokens":6}}'), Tokens(6, 0), "stop"),
        ((b"", b"", FORGED), None, "stop"),
        ((b"", b"", b'{"tokens":[1],"usage":null}'), None, "stop"),
        ((b"", b"", b""), None, "stop"),
        ((b"", b"", b'{"data":"' + b"x" * (2 * END_BYTES) + b'",' + WHOLE[1:]), Tokens(3, 5), "stop"),
    ],
)
def test_the_end_of_an_answer(pieces: tuple[bytes, bytes, bytes], tokens: Tokens | None, reason: str) -> None:
    end = end_of(*pieces)
    assert (tokens_told(end), finished_reason(end)) == (tokens, reason)


@pytest.mark.parametrize(
    ("whole", "told"),
    [
        (WHOLE, Told(Tokens(3, 5), "stop")),
        (b'{"usage":{"input_tokens":4,"output_tokens":2},"stop_reason":"max_tokens"}', Told(Tokens(4, 2), "length")),
        (b'{"data":[],"usage":{"prompt_tokens":6,"total_tokens":6}}', Told(Tokens(6, 0), "stop")),
        (b'{"usage":{},"choices":[{"finish_reason":"length"},{"finish_reason":null}]}', Told(Tokens(0, 0), "length")),
        (b'{"tokens":[1],"usage":null}', None),
        (b'{"usage":{"prompt_tokens":"six"}}', None),
        (b'{"usage":{},"stop_reason":"\xff"}', None),
        (FORGED, None),
        (b"[1]", None),
    ],
)
def test_a_whole_answer_that_is_understood(whole: bytes, told: Told | None) -> None:
    assert told_by(whole) == told


@pytest.mark.parametrize(
    "broken", [b"", b'{"usage":{}', WHOLE[:-1], b'{"usage":7,}', b'{"usage":{"prompt_tokens":"a"}']
)
def test_what_is_no_json_is_no_answer(broken: bytes) -> None:
    with pytest.raises(DecodeError):
        told_by(broken)
