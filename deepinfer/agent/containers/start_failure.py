"""What Docker means when it does not make or start a container. Pure."""

from __future__ import annotations

from docker.errors import APIError

from deepinfer.agent.containers.failures import ContainerRefused, DiskFull, ImageUnusable
from deepinfer.fleet.errors import DeepinferError

_NOTHING_TO_RUN = ("executable file not found", "no such file or directory: unknown", "permission denied: unknown")
_NO_RUNTIME = ("unknown or invalid runtime", "unknown runtime specified")  # since Docker 23, and before
_IMAGES = "use an image that serves vLLM's OpenAI API, such as vllm/vllm-openai, or set docker.entrypoint"


def start_failure(error: APIError | ValueError) -> DeepinferError:
    """With the next step, where one is known."""
    words = " ".join(str(getattr(error, "explanation", None) or error).split()).rstrip(".")
    if DiskFull.meant_by(words):
        return DiskFull(words)
    if any(sign in words for sign in _NOTHING_TO_RUN) and "mount" not in words:
        return ImageUnusable(f"the image has no vLLM server to start: {words}; {_IMAGES}.")
    if "could not select device driver" in words:
        return ContainerRefused(f"{words}; install the NVIDIA Container Toolkit on this node.")
    if any(sign in words.lower() for sign in _NO_RUNTIME):
        return ContainerRefused(f"{words}; install the vendor's container runtime on this node.")
    return ContainerRefused(f"Docker does not run the container: {words}.")
