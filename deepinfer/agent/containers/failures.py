"""How running engines in containers fails. The name of each stands before its sentence, wherever people see it."""

from __future__ import annotations

from deepinfer.fleet.errors import DeepinferError, EngineWillNotStart


class _Named(DeepinferError):
    """Mixed in before an error."""

    @property
    def sentence(self) -> str:
        return super().__str__()

    def __str__(self) -> str:
        return f"{type(self).__name__}: {self.sentence}"


class RuntimeUnreachable(_Named):
    """Docker does not answer."""


class ImageMissing(_Named):
    """The image is not on the node and cannot be pulled."""

    patience_seconds = 10.0  # a registry is nobody's to be hammered


class DiskFull(_Named):
    """The image does not fit on the node's disk."""

    patience_seconds = 60.0

    def __init__(self, words: str) -> None:
        super().__init__(f"{words}; `docker system prune` or a larger disk makes room.")

    @staticmethod
    def meant_by(words: str) -> bool:
        """Whether this is what Docker says with them."""
        return "no space left" in words


class ImageUnusable(_Named, EngineWillNotStart):
    """The image holds nothing that could be started."""


class MountRefused(_Named, EngineWillNotStart):
    """The container may not have that folder."""


class ContainerRefused(_Named):
    """Docker does not make or start the container."""
