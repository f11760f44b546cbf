"""A stream whose engine died goes on: what another replica is asked, and what the client gets of its answer.

Each try begins with what the client has by then, so a replica that dies too has moved the answer on. What cannot go on
exactly (`continuation.py`) ends as `StreamInterrupted`.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import msgspec
from msgspec.structs import replace

from deepinfer.control_plane.gateway.client_stream import ClientStream
from deepinfer.control_plane.gateway.continuation import (
    COMPLETIONS,
    Wanted,
    check_exact,
    completion_body,
    left_to_make,
    prompt_question,
    wanted,
)
from deepinfer.control_plane.gateway.continued_chunks import Rest, Retelling, told_again
from deepinfer.control_plane.gateway.event_errors import EventErrors
from deepinfer.control_plane.gateway.kept import Kept
from deepinfer.control_plane.gateway.renaming import of_length
from deepinfer.control_plane.gateway.sent_stream import DONE, NotExact, Sent, sent_stream
from deepinfer.control_plane.gateway.tokens_of import Tokenizing, exact_tokens
from deepinfer.control_plane.openai_errors import StreamInterrupted
from deepinfer.engine_shim.client import Answer, EngineClient
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.fleet.errors import EngineFailed

log = logging.getLogger(__name__)

CONTINUATIONS: Final = 3
"""Of one stream. A request that breaks engines must not go through all of them."""


class Another(Protocol):
    """Where the rest of an answer may come from."""

    async def awaited(self) -> AbstractContextManager[EngineClient] | None:
        """Lends the client of a replica that has not failed this request just now; None when there is none."""
        ...


async def go_on(call: EngineCall, kept: Kept, client: ClientStream, another: Another, failure: str) -> None:
    """Returns when the client has the whole answer, [DONE] included. `StreamInterrupted` when that cannot be."""
    kept.rest()  # half an event, which is made again
    try:
        for _ in range(CONTINUATIONS):
            if not kept.is_whole:
                raise NotExact("it holds an event that is too large")
            sent, asked = sent_stream(kept.events()), wanted(call.path, call.body)
            if sent.done or _lacks_only_done(asked, sent):
                client.write(b"" if sent.done else kept.passed(DONE))
                return
            if sent.has_begun:
                check_exact(asked, sent)
            lent = await another.awaited()
            if lent is None:
                raise NotExact("no other replica is ready")
            with lent as engine:
                try:
                    await _Attempt(call, kept, client, engine).go_on(asked, sent)
                except EngineFailed as error:
                    log.warning("the replica that continued a stream failed too: %s", error)
                    failure = str(error)
                else:
                    return
    except NotExact as reason:
        raise StreamInterrupted(f"{failure.rstrip('.')}. The answer cannot be continued: {reason}.") from reason
    raise StreamInterrupted(f"{failure.rstrip('.')}. {CONTINUATIONS} tries to continue the answer failed.")


def _lacks_only_done(asked: Wanted, sent: Sent) -> bool:
    has_usage = sent.usage_is_told or not (asked.wants_usage or sent.usage)
    return sent.finish is not None and asked.is_for_one and has_usage


class _Attempt:
    """On one replica. `EngineFailed` when another may do better."""

    def __init__(self, call: EngineCall, kept: Kept, client: ClientStream, engine: EngineClient) -> None:
        self._call = call
        self._kept = kept
        self._client = client
        self._engine = engine

    async def go_on(self, asked: Wanted, sent: Sent) -> None:
        if not sent.has_begun:
            log.info("a stream that had said nothing yet is begun again on another replica")
            await self._pass_on(self._call, Retelling(sent, told_again(sent)))
        else:
            await self._rest(asked, sent)

    async def _rest(self, asked: Wanted, sent: Sent) -> None:
        tokens = Tokenizing(self._ask, asked.asked.get("model"))
        question = prompt_question(asked)
        prompt = question if isinstance(question, list) else await tokens.of(question)
        texts = sent.closed_texts() if asked.is_greedy and sent.finish is None else sent.texts
        text = "".join(texts)
        made = await exact_tokens(tokens, prompt, text)
        if asked.is_greedy and len(made) < len(texts):
            raise NotExact("its text is not of the tokens that it would be made of again")
        most = left_to_make(asked, len(prompt), len(made), tokens.max_model_len)
        rest = Rest(asked, sent, len(prompt), len(made), again=sent.text[len(text) :])
        if sent.finish is not None:  # the token that ends an answer has no text
            self._write(rest.ending(None, 1 if sent.finish == "stop" else 0))
        elif not most:
            self._write(rest.ending("length", 0))
        else:
            log.info("a stream goes on on another replica, after %d tokens", len(made))
            body = completion_body(asked, prompt, made, most)
            await self._pass_on(self._to(COMPLETIONS, body), Retelling(sent, rest.change))

    async def _pass_on(self, call: EngineCall, retelling: Retelling) -> None:
        answer, errors, halves = await self._answer(call), EventErrors(), Kept()
        try:
            async for piece in answer:
                self._write(retelling.of(halves.whole_events(errors.passed(piece))))
                await self._client.drained()
        finally:
            answer.cancel()  # nothing, if it is whole
        if errors.failure is not None or not retelling.is_over:
            raise EngineFailed(errors.failure or "The engine ended its stream in the middle.")

    def _write(self, events: bytes) -> None:
        if events:
            self._client.write(self._kept.passed(events))

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._answer(self._to(path, msgspec.json.encode(body)))
        try:
            return msgspec.json.decode(await answer.read(), type=dict[str, Any])
        except msgspec.MsgspecError as error:
            raise NotExact(f"the other replica's answer from {path} cannot be read") from error
        finally:
            answer.cancel()

    async def _answer(self, call: EngineCall) -> Answer:
        answer = await self._engine.call(call)
        if answer.status != 200:
            answer.cancel()
            if answer.status >= 500 or answer.status == 429:
                raise EngineFailed(f"The engine answered {call.path} with status {answer.status}.")
            raise NotExact(f"the other replica answered {call.path} with status {answer.status}")
        return answer

    def _to(self, path: str, body: bytes) -> EngineCall:
        return replace(self._call, path=path, headers=of_length(self._call.headers, len(body)), body=body)
