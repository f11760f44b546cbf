"""A simulated engine: real timing, batching, KV cache and KV contents; made-up words.

It behaves like an engine with continuous batching: all running requests advance together, one token a step; a step's
prefill is cut into chunks; requests wait in order until the step, the batch and the cache have room. Steps end by the
event loop's clock: between requests nothing runs. Limits: one step's decoding costs the same at any batch size, and a
request reserves room for its whole answer at its start.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from deepinfer.engine_shim.engine_args import SimArgs
from deepinfer.engine_shim.engines.sim_blocks import BlockCache, chained_blocks
from deepinfer.engine_shim.engines.sim_core import SimCore
from deepinfer.engine_shim.engines.sim_script import Script
from deepinfer.engine_shim.engines.sim_sequence import Sequence, Step
from deepinfer.engine_shim.engines.sim_totals import SimTotals
from deepinfer.engine_shim.engines.sim_transfer import SimTransfers, lends, offer_in
from deepinfer.engine_shim.kv_contents import KvContents, KvGroup
from deepinfer.engine_shim.text.tokenizer import Tokenizer
from deepinfer.engine_shim.token_engine import (
    ContextTooLong,
    EngineInfo,
    EngineLoad,
    FinishReason,
    TokenDelta,
    TokenLogprob,
    TokenRequest,
)

_STEP_TOKENS: Final = 2048
"""Prefill a step computes at most."""
_DEFAULT_CONTEXT: Final = 8192


class SimEngine:
    """A `TokenEngine` without weights. Lives on the event loop it is used on."""

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        args: SimArgs,
        max_model_len: int | None = None,
        core: SimCore | None = None,
    ) -> None:
        self.info = EngineInfo(
            model=model,
            engine="sim",
            engine_version="1",
            max_model_len=min(max_model_len or _DEFAULT_CONTEXT, args.kv_blocks * args.block_size),
            kv_block_size=args.block_size,
            kv_blocks=args.kv_blocks,
            dtype="none",
            memory_bytes=args.memory_bytes,
            eos_token_ids=tokenizer.eos_token_ids,
            max_running=args.max_num_seqs,
            transfers_kv=True,
        )
        self.kv = KvContents(time.time_ns())
        self.kv.describe(KvGroup(0, args.block_size))
        self._args = args
        self._core = core
        self.totals = SimTotals()
        self._work_done = 0
        self._script = Script.of(tokenizer)
        self._vocabulary = tokenizer.vocab_size
        self._cache = BlockCache(args.kv_blocks, self.kv)
        self._transfers = SimTransfers(args, self._cache, self._wake)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._step: Step | None = None
        self._timer: asyncio.Handle | None = None
        self._prefill_rate = 0.0
        self._token_seconds = 0.0

    async def generate(self, request: TokenRequest) -> AsyncIterator[TokenDelta]:
        prompt = len(request.token_ids)
        if prompt >= self.info.max_model_len:
            raise ContextTooLong(prompt, self.info.max_model_len)
        room = self.info.max_model_len - prompt
        if offer := offer_in(request.transfer):
            await self._transfers.fetch(offer, request.token_ids)
        keeps = lends(request.transfer)
        if keeps:
            await self._transfers.listen()
        sequence = Sequence(request, self._script.answer(request.token_ids, request.sampling)[:room], keeps)
        self._waiting.append(sequence)
        self._wake()
        try:
            while True:
                delta = await sequence.deltas.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            self._end(sequence)

    def load(self) -> EngineLoad:
        unfilled = sum(s.uncomputed for s in self._running) + sum(len(s.request.token_ids) for s in self._waiting)
        return EngineLoad(
            running=len(self._running),
            waiting=len(self._waiting),
            waiting_prefill_tokens=unfilled,
            kv_blocks_used=self._cache.used,
            prefill_tokens_per_second=self._prefill_rate,
            seconds_per_output_token=self._token_seconds,
        )

    def work_done(self) -> int:
        return self._work_done

    async def broken(self) -> str:
        if self._core is None:
            await asyncio.Event().wait()  # alone on this loop, it has nothing that could break
        return await self._core.broken()  # type: ignore[union-attr]

    async def close(self) -> None:
        self._stop()
        self._transfers.close()
        if self._core is not None:
            await self._core.close()
        for sequence in (*self._running, *self._waiting):
            sequence.deltas.put_nowait(TokenDelta(finish_reason=FinishReason.ERROR, error="The engine was closed."))

    def _wake(self) -> None:
        """The first step begins with the next turn of the loop, so that requests that come together start together."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_soon(self._begin_step)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._step = None

    def _begin_step(self) -> None:
        self._admit()
        if not self._running:
            self._stop()  # until blocks that are kept for another engine are free
            return
        loop = asyncio.get_running_loop()
        self._step = step = Step(loop.time(), *self._chosen())
        seconds = step.prefill_tokens() / self._args.prefill_tokens_per_second
        seconds += self._args.seconds_per_output_token if step.decoding else 0.0
        self._timer = loop.call_at(step.started + seconds, self._end_step if self._core is None else self._ask_core)

    def _ask_core(self) -> None:
        """A step has ended when its time is over and the core has answered."""
        step = self._step
        if self._core is not None:
            self._core.beat(lambda: self._end_step() if self._step is step else None)

    def _admit(self) -> None:
        """In order, as long as the next step has tokens for them. One that does not fit holds up those behind it."""
        budget = _STEP_TOKENS - sum(sequence.uncomputed for sequence in self._running)
        seats = self._args.max_num_seqs - len(self._running)
        while self._waiting and min(budget, seats) > 0 and self._fits(self._waiting[0]):
            self._running.append(self._waiting.popleft())
            budget, seats = budget - self._running[-1].uncomputed, seats - 1
        self._cache.publish()

    def _fits(self, sequence: Sequence) -> bool:
        prompt, size = sequence.request.token_ids, self._args.block_size
        names = [block.name for block in chained_blocks(prompt[:-1], size)]  # the last one gives the first logits
        held = self._cache.acquire(names)
        needed = -(-(len(prompt) + len(sequence.answer)) // size) - held
        if not self._cache.reserve(needed):
            self._cache.release(names[:held], 0)
            return False
        sequence.blocks, sequence.reserved, sequence.cached = names[:held], needed, held * size
        sequence.uncomputed = len(prompt) - sequence.cached
        sequence.since = asyncio.get_running_loop().time()
        return True

    def _chosen(self) -> tuple[tuple[Sequence, ...], tuple[tuple[Sequence, int], ...]]:
        decoding = tuple(s for s in self._running if not s.uncomputed)
        prefill, budget = [], _STEP_TOKENS
        for sequence in self._running:
            tokens = min(sequence.uncomputed, budget)
            if tokens:
                prefill.append((sequence, tokens))
                budget -= tokens
        return decoding, tuple(prefill)

    def _end_step(self) -> None:
        step, self._step, self._timer = self._step, None, None
        if step is None:
            return
        self._work_done += step.prefill_tokens() + len(step.decoding)
        self._measure(step, asyncio.get_running_loop().time() - step.started)
        for sequence, tokens in step.prefill:
            sequence.uncomputed -= tokens
        for sequence in (*step.decoding, *(s for s, _ in step.prefill)):
            if not sequence.over:
                self._advance(sequence)
        self._cache.publish()
        if self._running or self._waiting:
            self._begin_step()

    def _advance(self, sequence: Sequence) -> None:
        if not sequence.uncomputed:
            sequence.made += 1
        self._store(sequence)
        if not sequence.uncomputed:
            self._count(sequence, asyncio.get_running_loop().time())
            delta = self._delta(sequence)
            sequence.deltas.put_nowait(delta)
            if delta.finish_reason is not None:
                self._end(sequence)

    def _count(self, sequence: Sequence, now: float) -> None:
        if sequence.made == 1:
            self.totals.prompt(len(sequence.request.token_ids), sequence.cached, now - sequence.since)
        self.totals.token(None if sequence.made == 1 else now - sequence.since)
        sequence.since = now

    def _store(self, sequence: Sequence) -> None:
        """Blocks that this step filled."""
        size, known = self._args.block_size, len(sequence.blocks)
        full = sequence.computed() // size
        if full > known:
            parent = sequence.blocks[-1] if known else 0
            for block in chained_blocks(sequence.all_tokens()[known * size : full * size], size, parent):
                self._cache.store(block)
                sequence.blocks.append(block.name)
                sequence.reserved -= 1

    def _delta(self, sequence: Sequence) -> TokenDelta:
        token = sequence.answer[sequence.made - 1]
        finish, prompt, transfer = self._finish(sequence, token), len(sequence.request.token_ids), None
        if finish is not None and sequence.lends:
            transfer = self._transfers.lend(sequence.blocks[: prompt // self._args.block_size], prompt)
        return TokenDelta(
            token_ids=(token,),
            logprobs=self._logprobs(token, sequence.request.sampling.logprobs),
            finish_reason=finish,
            cached_tokens=sequence.cached,
            transfer=transfer,
        )

    def _finish(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        stops = () if sampling.ignore_eos else self.info.eos_token_ids
        if sequence.made > sampling.min_tokens and (token in stops or token in sampling.stop_token_ids):
            return FinishReason.STOP
        return FinishReason.LENGTH if sequence.made == len(sequence.answer) else None

    def _logprobs(self, token: int, alternatives: int | None) -> tuple[TokenLogprob, ...]:
        """As made up as the words: each alternative is half as likely as the one before."""
        if alternatives is None:
            return ()
        top = tuple(((token + at) % self._vocabulary, -0.6931 * (at + 1)) for at in range(alternatives))
        return (TokenLogprob(token, -0.6931, top),)

    def _end(self, sequence: Sequence) -> None:
        """Finished or aborted: its room is free at once."""
        if sequence.over:
            return
        sequence.over = True
        if sequence in self._running:
            self._running.remove(sequence)
            self._cache.release(sequence.blocks, sequence.reserved)
        else:
            self._waiting.remove(sequence)
        if not self._running and not self._waiting:
            self._stop()

    def _measure(self, step: Step, seconds: float) -> None:
        """Exponentially weighted; a step that did both says nothing about either."""
        if step.decoding and not step.prefill:
            self._token_seconds = _mean(self._token_seconds, seconds)
        elif step.prefill and not step.decoding and seconds > 0:
            self._prefill_rate = _mean(self._prefill_rate, step.prefill_tokens() / seconds)


def _mean(mean: float, value: float) -> float:
    return value if mean == 0.0 else 0.8 * mean + 0.2 * value
