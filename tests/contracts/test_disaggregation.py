"""Two deployments of one model, one that prefills and one that decodes: what the gateway makes of requests for both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deepinfer.engine_shim.frames import AnswerFrame, EngineCall
from deepinfer.engine_shim.token_engine import EngineLoad
from deepinfer.fleet.alias import Alias, AliasTarget
from deepinfer.fleet.resources import Deployment
from deepinfer.fleet.snapshot import Snapshot
from deepinfer.fleet.spec import ReplicaRole
from tests.contracts.test_gateway_breakage import GOOD, SSE, breaks_after
from tests.fleet_values import deployment, placement, status
from tests.gateway_parts import RunningGateway, running_gateway, until
from tests.hand_made_engine import Answering, HandMadeEngine, answers, hand_made_engine
from tests.sim_engine import SimProcess, sim_process

CHAT = "/v1/chat/completions"
LONG = [{"role": "user", "content": "Tell me the tale of the river. " * 40}]
SHORT = [{"role": "user", "content": "hi"}]
QUICK: dict[str, Any] = {"prefill_tokens_per_second": 20_000.0, "seconds_per_output_token": 0.002}
SLOW = {"prefill_tokens_per_second": 200.0, "seconds_per_output_token": 0.002}
Sims = dict[str, SimProcess]
Endpoints = Mapping[str, str]


def of_role(name: str, role: ReplicaRole) -> Deployment:
    made = deployment(name)
    return made.model_copy(update={"spec": made.spec.model_copy(update={"role": role})})


def fleet_of(endpoints: Endpoints, roles: dict[str, ReplicaRole]) -> Snapshot:
    """`endpoints` by placement, `roles` by deployment; "front" is an alias of "decode"."""
    front = Alias(name="front", created_at="2026-01-02T00:00:00Z", targets=(AliasTarget(deployment="decode"),))
    return Snapshot(
        aliases=(front,),
        deployments=tuple(of_role(name, role) for name, role in roles.items()),
        placements=tuple(placement(name.split("-")[0], int(name.rpartition("-")[2])) for name in endpoints),
        statuses=tuple(status(name, endpoint=endpoint) for name, endpoint in endpoints.items()),
    )


def endpoints_of(sims: Sims) -> Endpoints:
    return {name: sim.endpoint for name, sim in sims.items()}


PAIR = {"decode": ReplicaRole.DECODE, "prefill": ReplicaRole.PREFILL}


@asynccontextmanager
async def pair_of(
    folder: Path, decode: int = 1, roles: dict[str, ReplicaRole] = PAIR, prefill: dict[str, Any] = QUICK
) -> AsyncIterator[tuple[RunningGateway, Sims]]:
    """So many replicas that decode, and one of each other deployment; `prefill` is how quick that is."""
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running_gateway())
        names = [(name, n) for name in roles for n in range(decode if name == "decode" else 1)]
        starting = [
            stack.enter_async_context(
                sim_process(_made(folder / name), n, deployment=name, **(prefill if name == "prefill" else QUICK))
            )
            for name, n in names
        ]
        started = await asyncio.gather(*starting)
        sims = {f"{name}-aaaaa-{n}": sim for (name, n), sim in zip(names, started, strict=True)}
        gateway.replicas.update(fleet_of(endpoints_of(sims), roles))
        await until(lambda: len(gateway.replicas.answering()) == len(sims))
        yield gateway, sims


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


async def ask(gateway: RunningGateway, messages: Any = LONG, **fields: Any) -> httpx.Response:
    return await gateway.ask(**{"model": "org/model", "messages": messages, "temperature": 0, **fields})


def said(answer: httpx.Response) -> tuple[str, int]:
    """The text, and how many tokens of the prompt the one that answered had not to compute."""
    told = answer.raise_for_status().json()
    return told["choices"][0]["message"]["content"], told["usage"]["prompt_tokens_details"]["cached_tokens"]


async def outcomes(gateway: RunningGateway) -> dict[str, float]:
    page = (await gateway.http.get("/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("deepinfer_prefills_total{")]
    return {line.split('outcome="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


def text_of(stream: str) -> str:
    """Of a whole one."""
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content", "") for choice in choices)


async def unused(sim: SimProcess) -> None:
    """Until its cache holds nothing for anybody."""
    async for state in sim.client.watch():
        if not state.load.running and not state.load.kv_blocks_used:
            return


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[RunningGateway, Sims]]:
    async with pair_of(tmp_path_factory.mktemp("sims"), roles={**PAIR, "whole": ReplicaRole.BOTH}) as both:
        yield both


@pytest.mark.asyncio(loop_scope="module")
async def test_a_long_prompt_is_prefilled_elsewhere_and_the_answer_is_the_same(
    three: tuple[RunningGateway, Sims],
) -> None:
    gateway, sims = three
    before = await outcomes(gateway)
    alone, cached = said(await ask(gateway, model="whole", max_tokens=40))
    assert alone and not cached
    text, cached = said(await ask(gateway, model="decode", max_tokens=40))
    assert text == alone and cached > 1000
    streamed = await ask(gateway, model="front", stream=True, max_tokens=40)
    assert text_of(streamed.text) == alone and "kv_transfer_params" not in streamed.text
    assert await outcomes(gateway) == before | {"separate": before.get("separate", 0) + 2}
    async with asyncio.timeout(5):  # what was fetched is not kept any longer
        await unused(sims["prefill-aaaaa-0"])


@pytest.mark.asyncio(loop_scope="module")
async def test_what_does_not_pay_goes_straight_to_the_one_that_decodes(three: tuple[RunningGateway, Sims]) -> None:
    gateway, _ = three
    before = await outcomes(gateway)
    assert said(await ask(gateway, SHORT, model="decode"))[1] == 0
    assert (await ask(gateway, SHORT, model="decode", n=2, max_tokens=4)).status_code == 200
    assert await outcomes(gateway) == before | {"dearer": 1.0, "unsuited": 1.0}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_role_is_routing_only(three: tuple[RunningGateway, Sims]) -> None:
    """It changes at once, nobody's requests come to a prefill replica, and its name says why."""
    gateway, sims = three
    names = endpoints_of(sims)
    refused = await ask(gateway, SHORT, model="prefill")
    assert refused.status_code == 404 and "prefill only prefills" in refused.json()["error"]["message"]
    assert (await gateway.http.get("/v1/models/prefill")).status_code == 404
    listed = (await gateway.http.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["decode", "org/model", "whole", "front"]
    assert {c.deployment for c in gateway.replicas.candidates("org/model")} == {"decode", "whole"}
    gateway.replicas.update(fleet_of(names, dict.fromkeys(("decode", "prefill", "whole"), ReplicaRole.PREFILL)))
    refused = await ask(gateway, SHORT)
    assert refused.status_code == 503 and "with the role decode or both" in refused.json()["error"]["message"]
    gateway.replicas.update(fleet_of(names, dict.fromkeys(("decode", "prefill", "whole"), ReplicaRole.BOTH)))
    assert len(gateway.replicas.candidates("org/model")) == 3
    assert (await ask(gateway, SHORT, model="prefill")).status_code == 200
    gateway.replicas.update(fleet_of(names, {**PAIR, "whole": ReplicaRole.BOTH}))
    assert (await ask(gateway, model="decode", kv_transfer_params={"do_remote_decode": True})).status_code == 400


async def test_a_prefill_replica_that_is_left_or_dies_at_it(tmp_path: Path) -> None:
    async with pair_of(tmp_path, prefill=SLOW) as (gateway, sims):
        prefills = sims["prefill-aaaaa-0"]
        asking = asyncio.create_task(ask(gateway))
        await prefills.state(running=1)
        asking.cancel()  # the client hangs up
        async with asyncio.timeout(5):
            await prefills.state(running=0)
        await until(lambda: not gateway.replicas.of("prefill")[0].load.running)  # or it is taken for busy
        assert await outcomes(gateway) == {"abandoned": 1.0}
        assert not any(c.in_flight for c in gateway.replicas.candidates("org/model"))
        asking = asyncio.create_task(ask(gateway))
        await prefills.state(running=1)
        await prefills.kill()
        assert said(await asking)[1] == 0
        await until(lambda: len(gateway.replicas.answering()) == 1)
        assert said(await ask(gateway))[1] > 0  # by its own cache
        assert await outcomes(gateway) == {"abandoned": 1.0, "failed": 1.0, "nobody": 1.0}


async def test_a_stream_goes_on_when_the_one_that_decodes_dies(tmp_path: Path) -> None:
    async with pair_of(tmp_path, decode=2) as (gateway, sims):
        alone = said(await ask(gateway, max_tokens=60))[0]
        body = {"model": "org/model", "messages": LONG, "temperature": 0, "max_tokens": 60, "stream": True}
        stream, killed = "", False
        async with gateway.http.stream("POST", CHAT, json=body) as answer:
            async for piece in answer.aiter_text():
                stream += piece
                if not killed and stream.count("data: ") > 5:
                    (busy,) = (c.placement for c in gateway.replicas.candidates("org/model") if c.in_flight)
                    await sims[busy].kill()
                    killed = True
        assert killed and text_of(stream) == alone
        assert await outcomes(gateway) == {"separate": 1.0, "dearer": 1.0}  # whoever answered first holds the prompt


TRANSFER = {"do_remote_prefill": True, "remote_block_ids": [[1, 2]], "any": "other field"}
NO_TRANSFERS = {
    "a refusal": answers(b'{"error": {"message": "what?"}}', status=400),
    "an error": answers(b'{"error": {"message": "lost"}}', status=500),
    "an error in the stream": answers(b'data: {"error": {"message": "lost"}}\n\n', content_type=SSE),
    "half an answer": breaks_after(),
}


def unless_transferred(without: Answering) -> Answering:
    """It cannot take a prompt over."""

    async def answering(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
        async for frame in (without if b"kv_transfer_params" in call.body else GOOD)(stream, call):
            yield frame

    return answering


@asynccontextmanager
async def hand_made_pair(
    told: bytes, decoding: Answering, names: tuple[str, ...] = ("tuned",)
) -> AsyncIterator[tuple[RunningGateway, list[HandMadeEngine]]]:
    """One that prefills, says so, and has adapters of these names; one that decodes, with the adapter "tuned"."""
    async with (
        hand_made_engine(placement="prefill-aaaaa-0", names=names, answering=answers(told)) as prefills,
        hand_made_engine(placement="decode-aaaaa-0", names=("tuned",), answering=decoding) as decodes,
        running_gateway(fleet_of({e.placement: e.endpoint for e in (prefills, decodes)}, PAIR)) as gateway,
    ):
        await until(lambda: len(gateway.replicas.answering()) == 2)
        yield gateway, [prefills, decodes]


@pytest.mark.parametrize("without", NO_TRANSFERS.values(), ids=NO_TRANSFERS.keys())
async def test_who_cannot_take_a_prompt_over_is_asked_again_without(without: Answering) -> None:
    told = json.dumps({"choices": [], "kv_transfer_params": TRANSFER}).encode()
    async with hand_made_pair(told, unless_transferred(without)) as (gateway, (prefills, decodes)):
        answer = await ask(gateway, stream=True, max_completion_tokens=50, min_tokens=3)
        assert (answer.status_code, answer.json()) == (200, {"ok": True})
        asked = json.loads(prefills.calls[0].body)
        assert (asked["model"], asked["messages"], asked["stream"]) == ("prefill", LONG, False)
        assert (asked["max_tokens"], asked["max_completion_tokens"], "min_tokens" in asked) == (1, 1, False)
        first, again = (json.loads(call.body) for call in decodes.calls)
        assert first.pop("kv_transfer_params") == TRANSFER
        assert first == again and again["min_tokens"] == 3
        assert await outcomes(gateway) == {"separate": 1.0}


@pytest.mark.parametrize(("names", "outcome"), [(("tuned",), "separate"), (("other",), "nobody")])
async def test_an_adapter_s_prompt_is_prefilled_by_who_has_it(names: tuple[str, ...], outcome: str) -> None:
    told = json.dumps({"kv_transfer_params": TRANSFER}).encode()
    async with hand_made_pair(told, GOOD, names) as (gateway, (prefills, _)):
        await until(lambda: gateway.replicas.candidates("tuned"))
        assert (await ask(gateway, model="tuned")).json() == {"ok": True}
        assert await outcomes(gateway) == {outcome: 1.0}
        assert [json.loads(call.body)["model"] for call in prefills.calls] == ["tuned"] * (outcome == "separate")


async def test_a_prompt_that_is_over_counts_no_longer_whatever_the_engine_said_meanwhile() -> None:
    told = json.dumps({"usage": {"prompt_tokens": 9000}, "kv_transfer_params": TRANSFER}).encode()
    async with hand_made_pair(told, GOOD) as (gateway, (prefills, _)):
        (connection,) = gateway.replicas.of("prefill")

        async def while_it_waits(stream: int, call: EngineCall) -> AsyncIterator[AnswerFrame | bytes]:
            await prefills.tells(EngineLoad(waiting=1, waiting_prefill_tokens=9000))
            await until(lambda: connection.load.waiting_prefill_tokens)
            async for frame in answers(told)(stream, call):
                yield frame

        prefills.answering = while_it_waits
        for _ in range(2):
            assert (await ask(gateway)).json() == {"ok": True}
        assert await outcomes(gateway) == {"separate": 2.0}
        await prefills.tells(EngineLoad(waiting=1, waiting_prefill_tokens=9001))  # which it says now: others sent it
        await until(lambda: connection.load.waiting_prefill_tokens == 9001)
        assert (await ask(gateway)).json() == {"ok": True}
        assert await outcomes(gateway) == {"separate": 2.0, "dearer": 1.0}
