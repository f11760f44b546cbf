"""What is said of a safetensors file agrees with the library that engines read it with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from deepinfer.fleet.safetensors_header import LENGTH_BYTES, Damaged, check_header, header_length

SIZES = {"BOOL": 1, "F8_E5M2": 1, "BF16": 2, "F16": 2, "F32": 4, "I64": 8}
Tensors = dict[str, dict[str, Any]]


def problem(content: bytes) -> str | None:
    """As a file with this content is checked."""
    try:
        length = header_length(content[:LENGTH_BYTES], len(content))
        check_header(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content) - LENGTH_BYTES - length)
    except Damaged as error:
        return str(error)
    return None


def refusal(content: bytes) -> str | None:
    """The library's."""
    try:
        deserialize(content)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        return str(error)
    return None


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@st.composite
def tensors(draw: st.DrawFn) -> Tensors:
    found: Tensors = {}
    end = 0
    for name in draw(st.lists(st.text("abc.", min_size=1, max_size=3), max_size=4, unique=True)):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = SIZES[dtype]
        for side in shape:
            size *= side
        found[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return found


def whole(described: Tensors, **more: Any) -> bytes:
    end = max((tensor["data_offsets"][1] for tensor in described.values()), default=0)
    return file_of(json.dumps({**described, **more}).encode(), b"\0" * end)


@given(tensors(), st.booleans())
def test_a_whole_file_is_taken(described: Tensors, with_metadata: bool) -> None:
    content = whole(described, **({"__metadata__": {"format": "pt"}} if with_metadata else {}))
    assert (problem(content), refusal(content)) == (None, None)


@st.composite
def broken_bytes(draw: st.DrawFn) -> bytes:
    content = bytearray(whole(draw(tensors())))
    match draw(st.sampled_from(["cut", "more", "flip", "length"])):
        case "cut":
            del content[draw(st.integers(0, len(content))) :]
        case "more":
            content += draw(st.binary(min_size=1, max_size=9))
        case "flip":
            at = draw(st.integers(0, len(content) - 1))
            content[at] ^= 1 << draw(st.integers(0, 7))
        case "length":
            content[:8] = draw(st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))).to_bytes(8, "little")
    return bytes(content)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.just(2**64), st.floats(0, 9), st.text("U8", max_size=2),
    st.just([]), st.just({}), st.lists(st.integers(-1, 40), max_size=3),
)  # fmt: skip


@st.composite
def broken_headers(draw: st.DrawFn) -> bytes:
    described = draw(tensors().filter(bool))
    data = whole(described)[8 + len(json.dumps(described)) :]
    name = draw(st.sampled_from(sorted(described)))
    field = draw(st.sampled_from(["dtype", "shape", "data_offsets", ""]))
    if not field:
        header: dict[str, Any] = {**described, name: draw(ODD)}
    elif draw(st.booleans()):
        header = {**described, name: {key: value for key, value in described[name].items() if key != field}}
    else:
        header = {**described, name: {**described[name], field: draw(ODD)}}
    return file_of(json.dumps(header).encode(), data)


@settings(max_examples=500)
@given(st.one_of(broken_bytes(), broken_headers()))
def test_a_damaged_file_is_refused_exactly_if_engines_refuse_it(content: bytes) -> None:
    ours, theirs = problem(content), refusal(content)
    event("refused" if theirs else "taken")
    if theirs is not None and "unknown variant" in theirs:
        return  # a type that a newer version of the format may know
    assert (ours is None) == (theirs is None), f"we say {ours}, the library says {theirs}, of {content!r}"


@given(st.binary(max_size=200))
def test_any_bytes_get_an_answer(content: bytes) -> None:
    assert (problem(content) is None) == (refusal(content) is None)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it has 0 bytes, and its header's length alone takes 8"),
        (b"\0" * 8, "its header is no JSON"),
        (b"\xff" * 8 + b"{}", "18,446,744,073,709,551,615 bytes, and 100,000,000 are the most"),
        ((9).to_bytes(8, "little") + b"{}", "said to have 9 bytes, and the whole file has 10"),
        (file_of(b"[]"), "its header is no JSON object"),
        (file_of(b"[" * 100_000), "its header is no JSON"),
        (file_of(b'{"w": 1}'), "does not say where w lies"),
        (whole({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})[:-1], "take 8 bytes, and it has 7"),
        (whole({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}), "a F32 of [3] does not fit"),
        (whole({"w": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}}), "w begins at 8 and the header ends"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, told: str) -> None:
    assert told in (problem(content) or "")
    assert refusal(content)
