"""A Hugging Face hub of one public, one gated and no other model, on loopback, spoken to by the real hub client."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class LoopbackHub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Request)
        self.files = files
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Request(BaseHTTPRequestHandler):
    server: LoopbackHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's name for it
        self.server.asked.append(f"{self.command} {self.path}")

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if "org/gated" in path:
            self._send(403, b"{}", with_body, {"X-Error-Code": "GatedRepo"})
        elif path.startswith("/api/models/org/open"):
            self._send(200, self._listing(tree="/tree/" in path), with_body, {})
        elif path == f"/org/open/resolve/{COMMIT}/{name}" and name in self.server.files:
            content = self.server.files[name]
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, with_body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"{}", with_body, {"X-Error-Code": "RepoNotFound"})

    def _listing(self, *, tree: bool) -> bytes:
        files = self.server.files.items()
        if tree:
            return json.dumps([{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files]).encode()
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files]
        return json.dumps({"id": "org/open", "sha": COMMIT, "siblings": siblings}).encode()

    def _send(self, status: int, content: bytes, with_body: bool, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextlib.contextmanager
def loopback_hub(files: dict[str, bytes]) -> Iterator[LoopbackHub]:
    with LoopbackHub(files) as server:
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        yield server
        server.shutdown()
        serving.join()
