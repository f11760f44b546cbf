"""What a safetensors file's header says: whether the file is whole, and what it holds. Pure: bytes and sizes in.

Eight bytes of length, a JSON object, then the tensors' bytes without a gap: what does not add up, no engine can load.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

LENGTH_BYTES = 8
_LARGEST = 100_000_000  # the format's own limit
_LARGEST_NUMBER = 1 << 64
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}  # what a newer version added is taken as it says


@dataclass(frozen=True, slots=True)
class TensorHead:
    """A tensor without its numbers."""

    dtype: str  # as safetensors writes it: "BF16"
    shape: tuple[int, ...]
    stored_bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


class Damaged(ValueError):
    """What is wrong, without a full stop."""


def header_length(first: bytes, file_size: int) -> int:
    """From the first eight bytes. Raises `Damaged`."""
    if len(first) < LENGTH_BYTES:
        raise Damaged(f"it has {file_size} bytes, and its header's length alone takes {LENGTH_BYTES}")
    length = int.from_bytes(first, "little")
    if length > _LARGEST:
        raise Damaged(f"its header is said to have {length:,} bytes, and {_LARGEST:,} are the most there may be")
    if length > file_size - LENGTH_BYTES:
        raise Damaged(f"its header is said to have {length:,} bytes, and the whole file has {file_size:,}")
    return length


def check_header(header: bytes, data_bytes: int) -> None:
    """`data_bytes`: how many follow it. Raises `Damaged`."""
    tensors = _described(header)
    places = sorted((*_offsets(name, tensor), name) for name, tensor in tensors.items())
    for (_, end, name), (start, _, following) in pairwise([(0, 0, "the header"), *places]):
        if start != end:
            raise Damaged(f"{following} begins at {start:,} and {name} ends at {end:,}")
    promised = places[-1][1] if places else 0
    if promised != data_bytes:
        raise Damaged(f"its tensors take {promised:,} bytes, and it has {data_bytes:,} for them")


def tensors_of(header: bytes) -> dict[str, TensorHead]:
    """By name. Raises `Damaged`."""
    found = {}
    for name, tensor in _described(header).items():
        start, end = _offsets(name, tensor)
        found[name] = TensorHead(tensor["dtype"], tuple(tensor["shape"]), end - start)
    return found


def _described(header: bytes) -> dict[str, Any]:
    return {name: tensor for name, tensor in _parsed(header).items() if name != "__metadata__"}


def _parsed(header: bytes) -> dict[str, Any]:
    try:
        found = json.loads(header.decode())
    except (ValueError, RecursionError) as error:
        raise Damaged("its header is no JSON") from error
    if not isinstance(found, dict) or not header.startswith(b"{"):
        raise Damaged("its header is no JSON object")
    return found


def _offsets(name: str, tensor: Any) -> tuple[int, int]:
    try:
        dtype, shape, (start, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise Damaged(f"its header does not say where {name} lies and what it is") from error
    if not isinstance(dtype, str) or not isinstance(shape, list) or not all(map(_is_size, (start, end, *shape))):
        raise Damaged(f"its header does not say where {name} lies and what it is")
    bits = _BITS.get(dtype)
    if start > end or (bits and prod(shape) * bits != 8 * (end - start)):
        raise Damaged(f"{name} is said to lie from {start:,} to {end:,}, where a {dtype} of {shape} does not fit")
    return start, end


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < _LARGEST_NUMBER
