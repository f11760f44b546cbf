"""How a command ends when it does not succeed: one sentence on stderr and an exit code that scripts can rely on.

0 done · 1 the operation failed · 2 the command or its input is wrong · 3 the server cannot be reached · 4 not found
"""

from __future__ import annotations

from typing import ClassVar

from deepinfer.fleet.config import InvalidConfig
from deepinfer.fleet.errors import DeepinferError, InvalidRequest


class CommandError(DeepinferError):
    """The command did not succeed."""

    exit_code: ClassVar[int] = 1


class OperationFailed(CommandError):
    """The server was reached, but what was asked for did not come about."""


class InvalidInput(CommandError):
    """The command or a file it was given is wrong."""

    exit_code = 2


class ServerNotReachable(CommandError):
    """No deepinfer server answers."""

    exit_code = 3


class NotFound(CommandError):
    """There is nothing of that name."""

    exit_code = 4


def exit_code(error: DeepinferError) -> int:
    if isinstance(error, CommandError):
        return error.exit_code
    return 2 if isinstance(error, InvalidConfig | InvalidRequest) else 1
