"""What a range of layers takes of a device's memory. Pure.

Working memory is what a step holds besides weights, keys and values, as stage.py and steps.py have it. With T tokens in
a step (max_num_batched_tokens, or all that there are), d, q, k, m the widths of the hidden state, queries, keys and
MLP, n the bytes of a number:

* every layer: n*T * (3d + max(4q + 5k, 4m)). The residual, its normed copy and the layer's output stay; attention has
  queries, keys and values as computed and turned by RoPE, the copy that goes into the cache, and its output; the MLP
  has gate, up, the activated gate and the product.
* a chunk that sees earlier chunks, or a sliding window: the keys and values of all its C tokens, repeated for every
  query head, n*2*C*q, and a mask of T*C places: n + 1 bytes each, or 10 while a window's is made.
* the last stage: the logits of R requests, R*vocabulary*(n + 40): the chosen rows, their copy in float32, and what
  top-k and top-p sort and add up.
* a sequence that outgrows its memory is copied into a bigger piece: its keys and values exist twice, between steps.

Never all at once, so the largest counts. tests/contracts/layer_shard/test_planned_sizes.py holds it against the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from deepinfer.fleet.model_shape import ModelShape
from deepinfer.planning.task import Task, in_blocks

_SAMPLING_BYTES = 40  # of each place of the vocabulary, beside the logits


@dataclass(frozen=True, slots=True)
class Need:
    """What a stage takes, in bytes."""

    weights: int
    kv: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.working


class Memory:
    """What each range of the task's layers takes, and where it fits."""

    def __init__(self, task: Task) -> None:
        model = task.model
        self._model = model
        self._ends = (0, *accumulate(model.layer_bytes))
        self._kv_a_layer = task.kv_tokens * model.kv_bytes
        self._copied_a_layer = in_blocks(task.context) * model.kv_bytes
        self._step = _step_bytes(task)
        self._logits = _logits_bytes(task)
        self._rooms = [device.memory_bytes - task.reserve_of(device) for device in task.devices]

    def need(self, start: int, stop: int) -> Need:
        working = max(self._step, (stop - start) * self._copied_a_layer, self._logits if self._is_last(stop) else 0)
        return Need(self.weights(start, stop), (stop - start) * self._kv_a_layer, working)

    def weights(self, start: int, stop: int) -> int:
        """A head tied to the embedding makes a last stage that is not the first hold the embedding too."""
        model = self._model
        held = self._ends[stop] - self._ends[start]
        if start == 0:
            held += model.embedding_bytes
        if self._is_last(stop):
            held += model.head_bytes + model.norm_bytes + (model.embedding_bytes if model.tied and start else 0)
        return held

    def room(self, device: int) -> int:
        """What the device offers beside its reserve; less than nothing where the reserve is larger."""
        return self._rooms[device]

    def fits(self, device: int, start: int, stop: int) -> bool:
        return self.need(start, stop).total <= self._rooms[device]

    def _is_last(self, stop: int) -> bool:
        return stop == self._model.layers


def _step_bytes(task: Task) -> int:
    model = task.model
    tokens = min(task.step_tokens, task.kv_tokens)
    number = model.number_bytes
    attention = 4 * model.attention_width + 5 * model.kv_width
    masked = _masked_bytes(model, tokens, task)
    mlp = number * tokens * 4 * model.mlp_width
    return number * tokens * 3 * model.hidden + max(number * tokens * attention + masked, mlp)


def _masked_bytes(model: ModelShape, tokens: int, task: Task) -> int:
    windowed = model.sliding_window is not None and task.context > model.sliding_window
    if task.context <= tokens and not windowed:
        return 0  # a whole prompt is computed at once: its attention needs no mask
    places = min(tokens, task.context) * task.context
    repeated = 2 * task.context * model.attention_width * model.number_bytes
    return max(10 * places if windowed else 0, repeated + places * (model.number_bytes + 1))


def _logits_bytes(task: Task) -> int:
    model = task.model
    rows = task.concurrency * model.vocabulary * (model.number_bytes + _SAMPLING_BYTES)
    return rows + min(task.step_tokens, task.kv_tokens) * model.hidden * model.number_bytes
