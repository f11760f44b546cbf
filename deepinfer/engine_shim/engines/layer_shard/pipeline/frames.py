"""The bytes between stages: a fixed header of 64, a message, and rows of numbers as they lie in memory. Pure.

Every length is checked before anything is read for it, against what the receiver expects (`FrameLimits`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import torch

HEADER_BYTES: Final = 64
_MAGIC: Final = b"dILS"
VERSION: Final = 1
_HEADER: Final = struct.Struct("<4sBBBxQQIIIxxxxQ16x")  # little-endian, padded to 64
LONGEST_MESSAGE: Final = 1 << 26
"""Bytes: openings carry prompts, of at most some million tokens."""

DTYPES: Final = {1: torch.bfloat16, 2: torch.float16, 3: torch.float32}
_CODES: Final = {dtype: code for code, dtype in DTYPES.items()}


class FrameRefused(ValueError):
    """What was received is no frame of ours, in words that follow its sender's name."""


class Kind(IntEnum):
    """What a frame carries."""

    ORDER = 1  # head to stage: an `Order`
    REPORT = 2  # stage to head: a `Report`
    ROWS = 3  # stage to next stage: a `Passed` and its rows


@dataclass(frozen=True, slots=True)
class Header:
    """What the first 64 bytes say."""

    kind: Kind
    epoch: int = 0
    step: int = 0
    rows: int = 0
    width: int = 0
    dtype: torch.dtype | None = None
    message_bytes: int = 0

    @property
    def payload_bytes(self) -> int:
        return self.rows * self.width * (self.dtype.itemsize if self.dtype else 0)

    def packed(self) -> bytes:
        code = _CODES[self.dtype] if self.dtype else 0
        sizes = (self.rows, self.width, self.message_bytes, self.payload_bytes)
        return _HEADER.pack(_MAGIC, VERSION, self.kind, code, self.epoch, self.step, *sizes)


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What a receiver expects of its peer."""

    kind: Kind
    rows: int = 0  # at most
    width: int = 0
    dtype: torch.dtype | None = None


def parsed(first: bytes | bytearray, limits: FrameLimits) -> Header:
    """The header in the first 64 bytes. Raises `FrameRefused`."""
    magic, version, kind, code, epoch, step, rows, width, message, payload = _HEADER.unpack(first)
    if magic != _MAGIC:
        raise FrameRefused("sent what is no frame")
    if version != VERSION:
        raise FrameRefused(f"speaks version {version} and not {VERSION}; run the same deepinfer on all nodes")
    if kind != limits.kind:
        raise FrameRefused(f"sent a frame of kind {kind} where {limits.kind.name} ({limits.kind}) is due")
    if message > LONGEST_MESSAGE:
        raise FrameRefused(f"announced a message of {message:,} bytes; {LONGEST_MESSAGE:,} are the most")
    if rows > limits.rows or (rows and (width, DTYPES.get(code)) != (limits.width, limits.dtype)):
        expected = f"at most {limits.rows:,} of {limits.width} in {limits.dtype}"
        raise FrameRefused(f"announced {rows:,} rows of {width} in {DTYPES.get(code)}; {expected} are expected")
    header = Header(limits.kind, epoch, step, rows, width if rows else 0, DTYPES.get(code) if rows else None, message)
    if payload != header.payload_bytes:
        raise FrameRefused(f"announced {payload:,} bytes for {header.payload_bytes:,} bytes of rows")
    return header
