"""The fleets: 8, 16 or 64 replicas, all alike or of mixed speeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from deepinfer.engine_shim.engine_args import SimArgs

_NORMAL: Final = SimArgs(
    prefill_tokens_per_second=8000, seconds_per_output_token=0.006, max_num_seqs=48, kv_blocks=4096, block_size=16
)


@dataclass(frozen=True, slots=True)
class Fleet:
    replicas: int
    mixed: bool

    @property
    def name(self) -> str:
        return f"{self.replicas} {'mixed' if self.mixed else 'alike'}"

    @property
    def prefill_rate(self) -> float:
        """Tokens a second, of all."""
        return sum(args.prefill_tokens_per_second for args in self.args())

    def args(self) -> tuple[SimArgs, ...]:
        """Mixed: of four, two are normal, one is half as fast with half the cache, one twice as fast with twice."""
        speeds = (1.0, 1.0, 0.5, 2.0) if self.mixed else (1.0,)
        return tuple(_of_speed(speeds[place % len(speeds)]) for place in range(self.replicas))


def _of_speed(speed: float) -> SimArgs:
    return _NORMAL.model_copy(
        update={
            "prefill_tokens_per_second": _NORMAL.prefill_tokens_per_second * speed,
            "seconds_per_output_token": _NORMAL.seconds_per_output_token / speed,
            "kv_blocks": int(_NORMAL.kv_blocks * speed),
        }
    )


FLEETS: Final = tuple(Fleet(replicas, mixed) for replicas in (8, 16, 64) for mixed in (False, True))
