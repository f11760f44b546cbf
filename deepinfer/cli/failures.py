"""How a command ends when it does not succeed: one sentence on stderr and an exit code that scripts can rely on.

0 done · 1 the operation failed · 2 the command or its input is wrong · 3 the server cannot be reached · 4 not found
"""

from __future__ import annotations

from typing import ClassVar

from deepinfer.fleet.errors import DeepinferError


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
