"""Whether the server in the container has failed. Pure: answers in, a standing out.

The agent watches the container itself; this is for a container that runs on while its server does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

_CLOSED_LOOKS: Final = 3
_DEAD_LOOKS: Final = 2
_UNWELL_SECONDS: Final = 15.0


class Answer(StrEnum):
    """What came of one question after its health."""

    FINE = "fine"
    CLOSED = "closed"  # refused, or closed without an answer, as a port does that Docker forwards to nobody
    DEAD = "dead"  # 503: vLLM's word for an engine core that is gone
    UNWELL = "unwell"  # another error
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known after all answers so far."""

    closed: int = 0  # in a row
    dead: int = 0  # not ended by a closed port: vLLM says it, and then its server ends
    unwell_seconds: float = 0.0  # without a good answer
    answer: Answer = Answer.FINE


def after(before: Standing, answer: Answer, seconds: float) -> Standing:
    """`seconds`: since the answer before."""
    return Standing(
        closed=before.closed + 1 if answer is Answer.CLOSED else 0,
        dead=before.dead + (answer is Answer.DEAD) if answer in (Answer.DEAD, Answer.CLOSED) else 0,
        unwell_seconds=0.0 if answer is Answer.FINE else before.unwell_seconds + seconds,
        answer=answer,
    )


def failure(standing: Standing) -> str | None:
    """The reason, without a full stop; None: it has not failed."""
    if standing.closed >= _CLOSED_LOOKS:
        told = "said that its engine is dead (503), and ended" if standing.dead else "does not listen any more"
        return f"its server {told}"
    if standing.dead >= _DEAD_LOOKS:
        return "its server says that its engine is dead (503)"
    if standing.unwell_seconds < _UNWELL_SECONDS:
        return None
    if standing.answer is Answer.UNWELL:
        return f"its server has answered /health with errors for {standing.unwell_seconds:.0f} s"
    return f"its server has not answered /health for {standing.unwell_seconds:.0f} s"
