"""NVIDIA Dynamo's frontend with its KV router, over two of its own simulated engines: it speaks to no others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gateway.cores import Cores
from benchmarks.gateway.engines import MODEL
from benchmarks.gateway.environments import environment, version
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import Gateway, Site, answers
from tests.fleet import free_port

_WHEELS = ("--no-deps", "--only-binary", ":all:", "ai-dynamo", "ai-dynamo-runtime", "aisimulate")
_NEEDED = (
    *("aiohttp", "certifi", "msgspec", "prometheus-client", "pyzmq", "redis", "tqdm", "transformers"),
    *("typing-extensions", "zstandard", "kubernetes", "uvloop"),
)
WORDS = 32_000
"""Of the model's tokenizer: w0, w1 and so on, each of them a token."""

CONTEXT = 32_768
"""Tokens."""


@dataclass(frozen=True)
class DynamoSite:
    """Where it runs: a folder of the run, one that is kept, and the cores of its frontend and of its engines."""

    home: Path
    cache: Path
    cores: Cores


@contextmanager
def dynamo(site: Site) -> Iterator[Gateway]:
    mocker = ("--num-workers", "2", "--speedup-ratio", "1000")
    with dynamo_fleet(DynamoSite(site.home, site.cache, site.cores), MODEL, mocker) as gateway:
        yield gateway


@contextmanager
def dynamo_fleet(site: DynamoSite, model: str, mocker: Sequence[str]) -> Iterator[Gateway]:
    """`mocker`: what its simulated engines are told."""
    programs, port = environment(site.cache / "dynamo", _WHEELS, _NEEDED), free_port()
    python, folder = programs / "python", model_folder(site.home / "dynamo-model")
    found_by = ("--discovery-backend", "file")
    environ = os.environ | {
        "DYN_FILE_KV": str(site.home / "dynamo"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "warn",
        "HF_HUB_OFFLINE": "1",
    }
    frontend = (python, "-m", "dynamo.frontend", "--router-mode", "kv", "--http-host", "127.0.0.1", "--http-port")
    engines = (python, "-m", "dynamo.mocker", "--model-path", folder, "--model-name", model)
    with (
        started((*frontend, str(port), *found_by), site.home / "dynamo.log", site.cores.gateway, environ) as tree,
        started((*engines, *mocker, *found_by), site.home / "dynamo-mocker.log", site.cores.others, environ),
    ):
        answers(tree, f"http://127.0.0.1:{port}/v1/models", lambda answer: model in answer.text)
        yield Gateway(f"dynamo {version(programs, 'ai-dynamo')}, kv, own mocker", port, tree, has_own_engines=True)


def model_folder(folder: Path) -> Path:
    """A model as far as the frontend looks at one: every number is a word, so that no token is an empty text."""
    folder.mkdir(parents=True)
    words = {"type": "WordLevel", "vocab": {f"w{number}": number for number in range(WORDS)}, "unk_token": "w0"}
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "added_tokens": [],
            "pre_tokenizer": {"type": "Whitespace"},
            "model": words,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        },
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "vocab_size": WORDS,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder
