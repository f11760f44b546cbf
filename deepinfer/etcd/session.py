"""A login's token: fetched when first needed, and fetched anew when etcd no longer takes it.

etcd forgets tokens when it restarts, when they were not used for five minutes and when a password changes. It looks at
the token before it does anything, so a call that is refused for it was not applied, and is sent again with a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
from grpc import aio

from deepinfer.etcd.access import Login
from deepinfer.etcd.errors import Denied, Unavailable

Authenticate = Callable[[str, str], Awaitable[str]]
"""From a name and a password to a token; "" where etcd wants none."""

_LOGIN_WANTED = ("invalid auth token", "user name is empty", "revision of auth store is old")


def wants_login(error: aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or is_about_token(error.details() or "")


def is_about_token(words: str) -> bool:
    return any(wanted in words for wanted in _LOGIN_WANTED)


class Session:
    """One login, shared by all connections: a token holds at every member."""

    def __init__(self, login: Login | None) -> None:
        self._login = login
        self._token = "" if login is None else None
        self._one_at_a_time = asyncio.Lock()

    @property
    def has_login(self) -> bool:
        return self._login is not None

    @property
    def has_token(self) -> bool:
        return self._token is not None

    def forget(self, token: str) -> None:
        """It was refused; the next call fetches another."""
        if self.has_login and token == self._token:
            self._token = None

    async def token(self, authenticate: Authenticate, seconds: float) -> str:
        """Raises `Denied` when name and password are refused, `Unavailable` when nobody answered in time."""
        if self._token is None:
            try:
                async with asyncio.timeout(seconds), self._one_at_a_time:
                    if self._token is None:
                        self._token = await self._fetched(authenticate)
            except TimeoutError as error:
                raise Unavailable(f"no login within {seconds:.1f} s") from error
        return self._token

    async def _fetched(self, authenticate: Authenticate) -> str:
        assert self._login is not None  # noqa: S101 - for the type checker: without a login there is a token, ""
        try:
            password = self._login.password()
        except OSError as error:
            raise Denied(f"the password of {self._login.username} cannot be read: {error}") from error
        return await authenticate(self._login.username, password)
