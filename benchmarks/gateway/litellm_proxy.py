"""litellm's proxy with one worker. It wants a key, and checks it against the one master key; it has no database."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gateway.engines import MODEL
from benchmarks.gateway.environments import environment, version
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import Gateway, Site, answers
from tests.fleet import free_port


@contextmanager
def litellm(site: Site) -> Iterator[Gateway]:
    programs, port = environment(site.cache / "litellm", ("litellm[proxy]",)), free_port()
    token = f"sk-{secrets.token_hex(16)}"
    upstreams = [
        {"model_name": MODEL, "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"{url}/v1", "api_key": "-"}}
        for url in site.engine_urls
    ]
    config = site.home / "litellm.yaml"
    config.write_text(json.dumps({"model_list": upstreams}))
    command = (programs / "litellm", "--config", config, "--host", "127.0.0.1", "--port", str(port))
    environ = os.environ | {"LITELLM_MASTER_KEY": token, "LITELLM_LOG": "ERROR", "NO_PROXY": "127.0.0.1"}
    with started((*command, "--num_workers", "1"), site.home / "litellm.log", site.cores.gateway, environ) as tree:
        answers(tree, f"http://127.0.0.1:{port}/health/liveliness")
        yield Gateway(f"litellm {version(programs, 'litellm')}, 1 worker", port, tree, token)
