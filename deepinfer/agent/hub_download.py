"""Fetches a model from Hugging Face: `python -m deepinfer.agent.hub_download ORG/NAME`. A process of its own.

It prints lines the agent reads: "progress: …" as it goes, then "folder: …" or "error: …" (with the next step).
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
_TELL_SECONDS = 1.0


def main() -> int:
    model = sys.argv[1]
    try:
        print(f"folder: {_fetched(model)}", flush=True)
    except GatedRepoError:
        return _failed(
            f"{model} is gated: accept its licence at https://huggingface.co/{model} and set HF_TOKEN for the worker."
        )
    except RepositoryNotFoundError:
        return _failed(
            f"Hugging Face has no model {model}, or it is private: check the name, or set HF_TOKEN for the worker."
        )
    except HfHubHTTPError as error:
        return _failed(f"Hugging Face refused {model} (status {error.response.status_code}); try again later.")
    except Exception as error:  # which types its transport raises changes between versions of the hub's client
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return _failed(f"{model} cannot be fetched ({reason}); without a network, give model_path.")
    return 0


def _fetched(model: str) -> str:
    info = HfApi().model_info(model, files_metadata=True)
    patterns = [pattern.removeprefix("*") for pattern in WANTED]
    total = sum(f.size or 0 for f in info.siblings or () if f.rfilename.endswith(tuple(patterns)))
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}" / "blobs"
    finished = threading.Event()
    teller = threading.Thread(target=_tell, args=(model, blobs, total, finished), daemon=True)
    teller.start()
    try:
        return snapshot_download(model, revision=info.sha, allow_patterns=list(WANTED))
    finally:
        finished.set()
        teller.join()


def _tell(model: str, blobs: Path, total: int, finished: threading.Event) -> None:
    """What has reached the disk: right whichever way the hub's client moves bytes, and after a restart too."""
    while not finished.wait(_TELL_SECONDS):
        here = sum(size for size in map(_size, blobs.glob("*")))
        share = min(99, 100 * here // max(1, total))
        print(f"progress: fetching {model}: {share} % of {total / 1e9:.1f} GB", flush=True)


def _size(path: Path) -> int:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0
    return min(found.st_size, found.st_blocks * 512)  # a file may be laid out before its bytes come


def _failed(sentence: str) -> int:
    print(f"error: {sentence}", flush=True)
    return os.EX_UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
