"""RoPE by a kernel, with torch's bits.

The attention of every family calls a function of its file to turn queries and keys. Each layer gets a copy of its own
`forward` in which that name means the kernel; the class and its file stay as they are. What a family's function really
computes is found out by asking it, when the first numbers of a size come.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn

from deepinfer.engine_shim.engines.layer_shard.kernels.machine import Kernels, threads_for

NAME = "apply_rotary_pos_emb"
PROBE_HEADS, PROBE_TOKENS = (3, 2), 5

Turned = tuple[Tensor, Tensor]
Turn = Callable[[Tensor, Tensor, Tensor, Tensor], Turned]


class Rotation:
    """In place of a family's function: the query and key that it is given are turned where they lie."""

    def __init__(self, theirs: Turn, kernels: Kernels) -> None:
        self._theirs, self._rotate = theirs, kernels.rotate
        self._verdicts: dict[tuple[int, int], bool] = {}

    def __call__(self, query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> Turned:
        """`query` and `key` are [1, head, token, head_size], the tables [1, token, numbers turned]."""
        sizes = (query.shape[3], cosines.shape[2])
        if sizes not in self._verdicts:
            self._verdicts[sizes] = self._serves(query, *sizes)
        side_by_side = query.stride(3) == key.stride(3) == cosines.stride(2) == sines.stride(2) == 1
        if not (self._verdicts[sizes] and side_by_side):
            return self._theirs(query, key, cosines, sines)
        self._turn(query, key, cosines, sines)
        return query, key

    def _turn(self, query: Tensor, key: Tensor, cosines: Tensor, sines: Tensor) -> None:
        heads, tokens, turned = query.shape[1], query.shape[2], cosines.shape[2]
        self._rotate(
            query.data_ptr(),
            key.data_ptr(),
            cosines.data_ptr(),
            sines.data_ptr(),
            tokens,
            turned // 2,
            heads,
            key.shape[1],
            *(stride for tensor in (query, key) for stride in (tensor.stride(2), tensor.stride(1))),
            cosines.stride(1),
            sines.stride(1),
            threads_for(8 * tokens * heads * turned),
        )

    def _serves(self, query: Tensor, size: int, turned: int) -> bool:
        from deepinfer.engine_shim.engines.layer_shard.kernels.rotation_kernel import STEP

        if query.dtype != torch.bfloat16 or query.device.type != "cpu" or turned % STEP:
            return False
        random = torch.Generator().manual_seed(0)
        both = [torch.randn(1, PROBE_TOKENS, n, size, generator=random).bfloat16().transpose(1, 2) for n in PROBE_HEADS]
        tables = [torch.randn(1, PROBE_TOKENS, turned, generator=random).bfloat16() for _ in range(2)]
        expected = self._theirs(both[0], both[1], tables[0], tables[1])
        self._turn(both[0], both[1], tables[0], tables[1])
        return all(torch.equal(ours, theirs) for ours, theirs in zip(both, expected, strict=True))


def use_rotation(model: nn.Module, kernels: Kernels) -> None:
    rotations: dict[Turn, Rotation] = {}
    for module in model.modules():
        forward = type(module).forward
        if not isinstance(forward, FunctionType) or NAME not in forward.__code__.co_names:
            continue
        theirs = forward.__globals__[NAME]
        rotation = rotations.setdefault(theirs, Rotation(theirs, kernels))
        words = {**forward.__globals__, NAME: rotation}
        ours = FunctionType(forward.__code__, words, forward.__name__, forward.__defaults__, forward.__closure__)
        ours.__kwdefaults__ = forward.__kwdefaults__
        module.forward = MethodType(ours, module)
