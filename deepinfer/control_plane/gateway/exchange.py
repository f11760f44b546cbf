"""One request and its whole answer as plain calls of the two connections, the client's and the engine's: no task.

It is the usual way, and does what the usual needs. Anything else that comes of it, such as a stream, a failure, another
status than 200, or a gateway that ends, gets a task, which goes on from what is here (`Relay.going_on`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec import DecodeError

from deepinfer.control_plane.gateway.admitted import Admitted
from deepinfer.control_plane.gateway.attempts import Asking
from deepinfer.control_plane.gateway.client_connection import ClientConnection
from deepinfer.control_plane.gateway.first_bytes import HELD_BYTES, kind_of
from deepinfer.control_plane.gateway.passing import NOT_SENT_BACK
from deepinfer.control_plane.gateway.usage import told_by
from deepinfer.engine_shim.client import Answer
from deepinfer.fleet.errors import EngineFailed

if TYPE_CHECKING:
    from deepinfer.control_plane.gateway.relay import Relay

log = logging.getLogger(__name__)

_NOT_SENT_BACK = NOT_SENT_BACK | {b"content-length"}


class Exchange(Admitted):
    """Of a connection, which tells it when its client is gone, or its gateway ends."""

    def begin(self, relay: Relay, connection: ClientConnection, asking: Asking) -> None:
        self._relay = relay
        self._connection = connection
        self._asking = asking
        self._answer = asking.answer
        connection.exchange = self
        if self._answer is None:
            self.hand_over()
        else:
            self._answer.when_heard = self._heard

    def hand_over(self) -> None:
        """To a task."""
        self._leave()
        self._connection.start(self._relay.going_on(self, self._asking), self.measured.scope, whole=True)

    def gone(self) -> None:
        """The client is."""
        self._leave()
        if self._answer is not None:
            self._answer.cancel()
        self._end()

    def _heard(self) -> None:
        """Something of the answer came, or its end."""
        answer = self._answer
        try:
            if answer is None or not self._passed(answer):
                self.hand_over()
        except Exception:  # one request's bug must not end the engine's connection, nor leave its client waiting
            log.exception("a request failed")
            self._leave()
            self._connection.transport.abort()
            self.measured.status = 500
            self._end()

    def _passed(self, answer: Answer) -> bool:
        """False for what is not the usual."""
        if answer.status != 200 or not kind_of(answer).startswith(b"application/json"):
            return not answer.status and not answer.is_over
        if not answer.is_over:
            return answer.waiting < HELD_BYTES
        body = answer.unread
        if not body:
            return False
        headers = [header for header in answer.headers if header[0] not in _NOT_SENT_BACK]
        headers += self.headers(self._relay.now())
        headers.append((b"content-length", b"%d" % len(body)))
        try:
            told = told_by(body)
            self._connection.answer(headers, body)
        except (DecodeError, RecursionError, EngineFailed):
            return False  # which the task sees again, and judges
        self._leave()
        self.loan.began()
        self.measured.answered(body, told)
        self.loan.answered()
        self._end()
        return True

    def _leave(self) -> None:
        self._connection.exchange = None
        if self._answer is not None:
            self._answer.when_heard = None

    def _end(self) -> None:
        self.loan.give_back()
        self._relay.ended(self)
