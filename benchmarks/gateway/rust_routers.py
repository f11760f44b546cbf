"""vllm-router and sglang-router, which is where it comes from; both with the policy that looks at prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gateway.environments import environment, version
from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import Gateway, Site, answers
from tests.fleet import free_port

VLLM_ROUTER = "vllm-router"


@contextmanager
def vllm_router(site: Site) -> Iterator[Gateway]:
    with _router(site, VLLM_ROUTER, (), "warning") as gateway:
        yield gateway


@contextmanager
def sglang_router(site: Site) -> Iterator[Gateway]:
    with _router(site, "sglang-router", ("launch",), "warn") as gateway:
        yield gateway


@contextmanager
def _router(site: Site, package: str, verb: tuple[str, ...], log_level: str) -> Iterator[Gateway]:
    programs, port = environment(site.cache / package, (package,)), free_port()
    command = [
        *(str(programs / package), *verb, "--worker-urls", *site.engine_urls, "--policy", "cache_aware"),
        *("--host", "127.0.0.1", "--port", str(port), "--log-level", log_level),
        *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())),
    ]
    with started(command, site.home / f"{package}.log", site.cores.gateway) as tree:
        answers(tree, f"http://127.0.0.1:{port}/health")
        yield Gateway(f"{package} {version(programs, package)}, cache_aware", port, tree)
