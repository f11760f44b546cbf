"""A bidirectional call that logs in before its first request, and can be told to end because a better member was found.

To its reader both are `Unavailable`: open another stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from grpc import aio

from deepinfer.etcd.errors import Unavailable
from deepinfer.etcd.session import Authenticate, Session, is_about_token, wants_login

LOGIN_SECONDS = 3.0

END_OF_STREAM: Any = aio.EOF  # type: ignore[attr-defined]  # the stubs forgot it


class Stream:
    """`write` opens it. `cancel` ends it, and must be called."""

    def __init__(self, open_call: Callable[[str], Any], session: Session, authenticate: Authenticate) -> None:
        """`open_call` makes grpc.aio's call with a token; the stubs say too little about it to be of use."""
        self._open_call, self._session, self._authenticate = open_call, session, authenticate
        self._call: Any = None
        self._token = ""
        self._token_is_new = False
        self._reason_to_leave = ""

    async def write(self, request: Any) -> None:
        if self._call is None:
            self._token_is_new = not self._session.has_token
            self._token = await self._session.token(self._authenticate, LOGIN_SECONDS)
            self._call = self._open_call(self._token)
        with self._told_why_it_ends():
            await self._call.write(request)

    async def read(self) -> Any:
        try:
            with self._told_why_it_ends():
                response = await self._call.read()
        except aio.AioRpcError as error:
            if not (self._session.has_login and wants_login(error)):
                raise
            raise self._login_again(error.details() or "") from error
        if response is not END_OF_STREAM and getattr(response, "canceled", False):
            self._raise_if_token_is_old(response.cancel_reason)
        return response

    def leave(self, reason: str) -> None:
        """Whoever reads it gets `Unavailable` with this reason."""
        if self._call is not None:
            self._reason_to_leave = reason
            self._call.cancel()

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()

    @contextmanager
    def _told_why_it_ends(self) -> Iterator[None]:
        """grpc.aio cannot tell who cancelled: whoever waits here, or `leave`."""
        try:
            yield
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if not self._reason_to_leave or (task and task.cancelling()):
                raise
            raise Unavailable(self._reason_to_leave) from error

    def _raise_if_token_is_old(self, reason: str) -> None:
        """Up to 3.5.1, etcd says "permission denied" of a watch also where it no longer knows the token."""
        if not self._session.has_login:
            return
        if is_about_token(reason) or ("permission denied" in reason and not self._token_is_new):
            raise self._login_again(reason)

    def _login_again(self, reason: str) -> Unavailable:
        self._session.forget(self._token)
        return Unavailable(f"etcd no longer takes the login's token ({reason})")
