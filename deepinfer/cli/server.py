"""The server as the command line sees it: its management API and its chat endpoint, over HTTP.

Every failure leaves here as one of `failures`; nothing above this module knows httpx. Answers stay plain JSON objects
("views"): the server owns their meaning, and `-o json` must not lose a field a newer server adds.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from deepinfer.cli.credentials import is_local, secret_for
from deepinfer.cli.failures import CommandError, InvalidInput, NotFound, OperationFailed, ServerNotReachable
from deepinfer.cli.views import View
from deepinfer.fleet.api_key import VARIABLE

Query = Mapping[str, str] | None
_PATIENT = httpx.Timeout(10, read=None)  # an answer may take as long as the model needs


class Server:
    """One deepinfer server; use it as a context, so that its connections are closed."""

    def __init__(self, address: str, *, timeout: float = 30) -> None:
        self.url = _url(address)
        local = is_local(
            urlsplit(self.url).hostname or ""
        )  # a proxy from the environment cannot reach our own loopback
        self.stale_since = ""  # as the last answer said: the server could not tell anything newer
        timeouts = httpx.Timeout(timeout, connect=5)
        self._http = httpx.Client(base_url=self.url, timeout=timeouts, trust_env=not local, auth=self._signed)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def is_ready(self) -> bool:
        """It answers, and knows what is deployed."""
        try:
            return self._http.get("/ready", timeout=2).is_success
        except httpx.TransportError:
            return False

    def routes_to(self, model: str) -> bool:
        """Whether a chat with it would find a replica now: the gateway has talked to one."""
        models = _listed(self._ask("GET", "/v1/models"))
        return any(m.get("id") == model and m.get("ready") for m in models)

    def deployments(self) -> list[View]:
        return _listed(self._ask("GET", "/v1/deployments"))

    def deployment(self, name: str) -> View:
        return _object(self._ask("GET", _path("deployments", name)))

    def create(self, fields: View, *, dry_run: bool = False) -> View:
        return _object(self._ask("POST", "/v1/deployments", fields, _dry(dry_run)))

    def put(self, name: str, spec: View) -> View:
        return _object(self._ask("PUT", _path("deployments", name), spec))

    def put_all(self, deployments: list[View]) -> list[View]:
        """In one write."""
        return _listed(self._ask("PUT", "/v1/deployments", {"deployments": deployments}))

    def foreseen(self, deployments: list[View]) -> View:
        """What `put_all` would do."""
        return _object(self._ask("PUT", "/v1/deployments", {"deployments": deployments}, _dry(True)))

    def explanation(self, name: str) -> View:
        return _object(self._ask("GET", f"{_path('deployments', name)}/explain"))

    def routing(self, request: str) -> View:
        return _object(self._ask("GET", _path("routing", request)))

    def rollout(self, name: str) -> View:
        return _object(self._ask("GET", f"{_path('deployments', name)}/rollout"))

    def revisions(self, name: str) -> list[View]:
        return _listed(self._ask("GET", f"{_path('deployments', name)}/revisions"))

    def undo(self, name: str, to: int | None, *, dry_run: bool = False) -> View:
        body = {} if to is None else {"to": to}
        return _object(self._ask("POST", f"{_path('deployments', name)}/rollout/undo", body, _dry(dry_run)))

    def delete(self, name: str) -> View:
        return _object(self._ask("DELETE", _path("deployments", name)))

    def aliases(self) -> list[View]:
        return _listed(self._ask("GET", "/v1/aliases"))

    def set_alias(self, name: str, targets: list[View]) -> View:
        return _object(self._ask("PUT", _path("aliases", name), {"targets": targets}))

    def remove_alias(self, name: str) -> View:
        return _object(self._ask("DELETE", _path("aliases", name)))

    def replicas(self) -> list[View]:
        return _listed(self._ask("GET", "/v1/replicas"))

    def nodes(self) -> list[View]:
        return _listed(self._ask("GET", "/v1/nodes"))

    def fleet(self) -> View:
        return _object(self._ask("GET", "/v1/fleet"))

    def confirm_fleet(self) -> View:
        return _object(self._ask("POST", "/v1/fleet/confirm"))

    def node(self, name: str) -> View:
        return _object(self._ask("GET", _path("nodes", name)))

    def decide(self, node: str, decision: str) -> View:
        """Cordon, uncordon, drain, lost."""
        return _object(self._ask("POST", f"{_path('nodes', node)}/{decision}"))

    def forget_node(self, name: str) -> View:
        return _object(self._ask("DELETE", _path("nodes", name)))

    def rebalance(self, *, dry_run: bool) -> View:
        return _object(self._ask("POST", "/v1/rebalance", None, _dry(dry_run)))

    def events(self, about: str | None, limit: int) -> list[View]:
        """The newest last."""
        query = {"limit": str(limit), **({} if about is None else {"about": about})}
        return _listed(self._ask("GET", "/v1/events", None, query))

    def keys(self) -> list[View]:
        return _listed(self._ask("GET", "/v1/api_keys"))

    def create_key(self, fields: View) -> View:
        return _object(self._ask("POST", "/v1/api_keys", fields))

    def revoke_key(self, key_id: str) -> View:
        return _object(self._ask("DELETE", _path("api_keys", key_id)))

    def logs(self, replica: str, *, tail: int | None, follow: bool, previous: bool) -> Iterator[str]:
        """The text in pieces as it comes; with `follow` it ends when the replica does."""
        wanted: dict[str, str | int] = {"follow": _flag(follow), "previous": _flag(previous)}
        if tail is not None:
            wanted["tail"] = tail
        with self._failures(), self._stream("GET", f"{_path('replicas', replica)}/logs", params=wanted) as response:
            yield from response.iter_text()

    def chat(self, request: View) -> Generator[View, None, None]:
        """The delta of each chunk of a streamed answer."""
        body = {**request, "stream": True}
        with self._failures(), self._stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                yield _delta(data)
        raise OperationFailed("The answer broke off before its end; ask again, or see `deepinfer get replicas`.")

    def _signed(self, request: httpx.Request) -> httpx.Request:
        """Looked up each time: the server's own token is another one after it was started again."""
        secret = secret_for(self.url)
        if secret is not None:
            request.headers["authorization"] = f"Bearer {secret}"
        return request

    def _ask(self, method: str, path: str, body: View | None = None, query: Query = None) -> Any:
        with self._failures():
            response = self._http.request(method, path, json=body, params=query)
        if response.is_success:
            self.stale_since = response.headers.get("x-deepinfer-stale-since", "")
            return self._parsed(response)
        raise self._refusal(response)

    @contextmanager
    def _stream(self, method: str, path: str, **parts: Any) -> Iterator[httpx.Response]:
        with self._http.stream(method, path, timeout=_PATIENT, **parts) as response:
            if not response.is_success:
                response.read()
                raise self._refusal(response)
            yield response

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServerNotReachable(
                f"No deepinfer server answers at {self.url}; start one with `deepinfer up`, "
                "or name another with --server."
            ) from error
        except httpx.TransportError as error:
            raise ServerNotReachable(
                f"The server at {self.url} stopped answering ({type(error).__name__}); see its log and try again."
            ) from error

    def _parsed(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._stranger() from error

    def _refusal(self, response: httpx.Response) -> CommandError:
        """The server's own words; the exit code follows from the status."""
        try:
            message = str(response.json()["error"]["message"])
        except (ValueError, KeyError, TypeError):
            return self._stranger() if response.status_code < 500 else OperationFailed(_fault(self.url, response))
        match response.status_code:
            case 401:
                return OperationFailed(f"{message} The command line takes it from {VARIABLE}.")
            case 404:
                return NotFound(message)
            case 400 | 413 | 422:
                return InvalidInput(message)
        return OperationFailed(message)

    def _stranger(self) -> ServerNotReachable:
        return ServerNotReachable(f"What answers at {self.url} is not deepinfer; name its server with --server.")


def _url(address: str) -> str:
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise InvalidInput(f"{address!r} is not a server's address; write it like http://127.0.0.1:8082.")
    return url


def _path(kind: str, name: str) -> str:
    return f"/v1/{kind}/{quote(name, safe='')}"


def _dry(value: bool) -> Query:
    return {"dry_run": _flag(value)}


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _listed(body: Any) -> list[View]:
    found = body.get("data") if isinstance(body, dict) else body
    if not isinstance(found, list):
        raise OperationFailed("The server's answer is not a list; is it another version than this command?")
    return found


def _object(body: Any) -> View:
    if not isinstance(body, dict):
        raise OperationFailed("The server's answer is not an object; is it another version than this command?")
    return body


def _fault(url: str, response: httpx.Response) -> str:
    return f"The server at {url} failed with HTTP {response.status_code}; its log says why."


def _delta(data: str) -> View:
    """An engine that breaks after the first token tells so inside the stream: the status was sent long before."""
    try:
        chunk = json.loads(data)
        if "error" in chunk:
            raise OperationFailed(f"The answer broke off: {chunk['error']['message']}")
        choices = chunk.get("choices") or [{}]  # the chunk that carries the usage has none
        return _object(choices[0].get("delta") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OperationFailed("The server streamed something that is not a chat answer.") from error
