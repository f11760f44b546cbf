"""The real `serve` with its embedded etcd, in front of the engines. Its shims run beside these, as on engines' nodes.

`_CONFIG` is what `serve` is given, `_key` what the load sends with each request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks.gateway.engines import MODEL
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import CannotRun, Gateway, Site, answers
from benchmarks.gateway.simulated_agent import engines_deployed
from deepinfer.fleet.admin_token import admin_token
from tests.fleet import free_port

_CONFIG = """
[serve]
port = {port}
authentication = "required"
[etcd]
port = {etcd_port}
data_dir = "{home}/etcd"
"""


@contextmanager
def deepinfer(site: Site) -> Iterator[Gateway]:
    port, etcd_port, config = free_port(), free_port(), site.home / "serve.toml"
    config.write_text(_CONFIG.format(port=port, etcd_port=etcd_port, home=site.home))
    command = (sys.executable, "-m", "deepinfer.control_plane", "-c", config)
    url = f"http://127.0.0.1:{port}"
    with started(command, site.home / "serve.log", site.cores.gateway) as tree:
        answers(tree, f"{url}/ready")
        admin = {"authorization": f"Bearer {admin_token(port)}"}
        with (
            httpx.Client(base_url=url, headers=admin, trust_env=False, timeout=30) as api,
            engines_deployed(site, f"127.0.0.1:{etcd_port}", api),
        ):
            ready = f'deepinfer_replicas{{model_name="{MODEL}",state="ready"}} {len(site.engines.ports)}.0'
            answers(tree, f"{url}/metrics", lambda answer: ready in answer.text, admin)
            yield Gateway("deepinfer", port, tree, _key(api))


def _key(api: httpx.Client) -> str:
    """Of a user's, with limits of every kind that this load does not reach, so that they are counted."""
    limits = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_streams"), 1000000000)
    answer = api.post("/v1/api_keys", json={"name": "bench", "models": [MODEL], "limits": limits})
    if not answer.is_success:
        raise CannotRun(f"serve made no API key: {answer.text}")
    return str(answer.json()["secret"])
