"""Row 64: replicas are taken away while clients ask. Nobody is told of it: not even a second try is needed."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from tests.faults.fault_fleet import FaultFleet
from tests.faults.invariants import standing
from tests.faults.traffic import check, streamed
from tests.fleet import eventually, metric

STREAMS, TOKENS = 8, 400


@pytest.mark.faults
def test_row_64_scaling_down_and_up_costs_no_request(tmp_path: Path) -> None:
    with FaultFleet(tmp_path, gateways=2, nodes=2).running() as fleet:
        fleet.simulate(replicas=3)
        with standing(fleet, breaks="chat") as traffic:
            for replicas in (1, 2, 1):
                fleet.http.patch("/v1/deployments/chat", json={"replicas": replicas}).raise_for_status()
                eventually(lambda: len(fleet.replicas("chat")) == replicas, 30)  # noqa: B023  asked in this turn only
                fleet.routed_everywhere()
                traffic.more()
        assert not traffic.tally.tried_again, traffic.tally.tried_again


def test_row_64_streams_that_run_when_their_model_is_deleted_end_whole(tmp_path: Path) -> None:
    with FaultFleet(tmp_path).running() as fleet:
        fleet.simulate("doomed", engine_args={"seconds_per_output_token": 0.05})
        fleet.simulate("chat")
        ends: list[str] = []
        begun = threading.Barrier(STREAMS + 1)

        def ask(number: int) -> None:
            prompt = f"tale {number}"
            with httpx.Client(timeout=30, trust_env=False) as http:
                begun.wait()
                check(streamed(http, fleet.url, "doomed", prompt, TOKENS), prompt, TOKENS)
                ends.append("whole")

        with standing(fleet, breaks="doomed"):
            threads = [threading.Thread(target=ask, args=(n,)) for n in range(STREAMS)]
            for thread in threads:
                thread.start()
            begun.wait()
            eventually(lambda: metric(fleet.http, "deepinfer_num_requests_running", 'model_name="doomed"') == STREAMS)
            fleet.delete("doomed")
            for thread in threads:
                thread.join(30)
        assert ends == ["whole"] * STREAMS
