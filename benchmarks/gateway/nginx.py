"""nginx with one worker and the directives its documentation gives for keep-alive and streams."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.gateway.process_tree import started
from benchmarks.gateway.running import CannotRun, Gateway, Site, answers
from tests.fleet import free_port

_CONFIG = """
worker_processes 1;
daemon off;
pid {home}/nginx.pid;
error_log {home}/nginx-error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_body_temp_path {home}/nginx-body;
  proxy_temp_path {home}/nginx-proxy;
  fastcgi_temp_path {home}/nginx-fastcgi;
  uwsgi_temp_path {home}/nginx-uwsgi;
  scgi_temp_path {home}/nginx-scgi;
  keepalive_requests 100000000;
  upstream engines {{ {servers} keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@contextmanager
def nginx(site: Site) -> Iterator[Gateway]:
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin") or shutil.which("nginx")
    if program is None:
        raise CannotRun("there is no nginx; install it, as with `apt install nginx-light`")
    port = free_port()
    servers = " ".join(f"server 127.0.0.1:{engine};" for engine in site.engines.ports)
    config = site.home / "nginx.conf"
    config.write_text(_CONFIG.format(home=site.home, servers=servers, port=port))
    command = (program, "-c", config, "-e", site.home / "nginx-error.log", "-p", site.home)
    with started(command, site.home / "nginx.log", site.cores.gateway) as tree:
        answers(tree, f"http://127.0.0.1:{port}/health")
        yield Gateway(f"nginx {_version(program)}, 1 worker", port, tree)


def _version(program: str) -> str:
    told = subprocess.run([program, "-v"], capture_output=True, text=True, check=False)
    return told.stderr.rpartition("/")[2].strip()
