"""The command line on two real nodes: what would happen, what happened, and what people decide about nodes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import Fleet, eventually
from tests.stories.test_cli import command, deepinfer


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two nodes with one simulated device each."""
    with Fleet(tmp_path_factory.mktemp("fleet"), worker="simulated_devices = 1").running() as fleet:
        fleet.start_worker("node-2")
        yield fleet


@pytest.fixture
def chat(two: Fleet) -> Iterator[str]:
    """One replica on each node."""
    two.deploy(name="chat", model="sim/chat", engine="sim", replicas=2, device="sim:0")
    two.wait_ready("chat")
    yield "chat"
    two.delete("chat")


def nodes_of(fleet: Fleet, name: str) -> list[str]:
    return sorted(replica["node"] for replica in fleet.replicas(name) if replica["intent"] == "serve")


def fails(fleet: Fleet, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = command(fleet, *arguments)
    assert done.returncode == 1, (done.stdout, done.stderr)
    return done


def test_dry_runs_and_diffs_tell_what_apply_then_does(two: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text("{model: sim/applied, name: applied, engine: sim, replicas: 2, device: 'sim:0'}")
    told = deepinfer(two, "apply", "-f", str(file), "--dry-run").splitlines()
    assert told == [
        "applied would be created",
        "  + applied on node-1 (sim:0) starts",
        "  + applied on node-2 (sim:0) starts",
    ]
    new = fails(two, "diff", "-f", str(file)).stdout.splitlines()
    assert new[0] == "applied: new" and new[-2:] == told[1:] and "  replicas:  2" in new
    assert two.replicas("applied") == []
    deepinfer(two, "apply", "-f", str(file), "--wait")
    assert nodes_of(two, "applied") == ["node-1", "node-2"]
    assert deepinfer(two, "diff", "-f", str(file)) == ""
    file.write_text(file.read_text().replace("replicas: 2", "replicas: 1, rollout: {max_surge: 0}"))
    changed = fails(two, "diff", "-f", str(file)).stdout.splitlines()
    assert changed[:3] == ["applied: generation 1 -> 2", "  replicas: 2 -> 1", "  rollout.max_surge: 1 -> 0"]
    assert changed[3].endswith("on node-2 (sim:0) stops: fewer replicas are wanted") and len(changed) == 4
    compared = json.loads(fails(two, "diff", "-f", str(file), "-o", "json").stdout)
    assert compared["data"][0]["differences"][0] == {"field": "replicas", "before": 2, "after": 1}
    important = ("deploy", "sim/important", "--engine", "sim", "--device", "sim:0", "--priority", "5", "--dry-run")
    foreseen = deepinfer(two, *important)
    assert "important of priority 5 takes its devices" in foreseen and "! 1 of applied without a place" in foreseen
    deepinfer(two, "delete", "applied")


def test_the_deployments_of_a_file_are_foreseen_together(two: Fleet, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    document = "{model: sim/first, name: first, engine: sim, replicas: 2, device: 'sim:0'}"
    file.write_text(f"{document}\n---\n{document.replace('first', 'second')}\n")
    told = deepinfer(two, "apply", "-f", str(file), "--dry-run").splitlines()
    assert told == [
        "first would be created",
        "  + first on node-1 (sim:0) starts",
        "  + first on node-2 (sim:0) starts",
        "second would be created",
        "  ! 2 of second without a place: "
        "node-1 device sim:0 is taken by first-0; node-2 device sim:0 is taken by first-1",
    ]
    assert "! 2 of second without a place" in fails(two, "diff", "-f", str(file)).stdout
    assert deepinfer(two, "apply", "-f", str(file)).splitlines() == ["first created", "second created"]
    two.wait_ready("first")
    assert (nodes_of(two, "first"), nodes_of(two, "second")) == (["node-1", "node-2"], [])
    for name in ("second", "first"):
        deepinfer(two, "delete", name)


def test_a_rollout_is_followed_listed_and_undone(two: Fleet, chat: str, tmp_path: Path) -> None:
    assert "generation 1 is complete (2 of 2 ready, 2 updated, 0 old)" in deepinfer(two, "rollout", "status", chat)
    two.http.patch(f"/v1/deployments/{chat}", json={"max_model_len": 64}).raise_for_status()
    told = json.loads(deepinfer(two, "rollout", "status", chat, "-o", "json"))
    assert (told["generation"], told["outcome"], told["ready"]) == (2, "complete", 2)
    history = [line.split() for line in deepinfer(two, "rollout", "history", chat).splitlines()]
    assert [(line[0], line[2:]) for line in history[1:]] == [
        ("1", ["-", "created"]),
        ("2", ["newest,", "good", "changed", "max_model_len"]),
    ]
    assert "would be changed to generation 3" in deepinfer(two, "rollout", "undo", chat, "--dry-run")
    assert deepinfer(two, "rollout", "undo", chat).startswith("chat is at generation 3; chat is ready (2 of 2")
    assert two.get(f"/v1/deployments/{chat}")["max_model_len"] is None
    assert command(two, "rollout", "undo", chat, "--to", "9").returncode == 4


def test_a_generation_that_fails_ends_a_wait_with_its_reason(two: Fleet, chat: str, tmp_path: Path) -> None:
    file = tmp_path / "worse.yaml"
    file.write_text("{model: sim/chat, name: chat, engine: sim, replicas: 2, device: 'sim:0', model_path: /nowhere}")
    assert "generation 2 was rolled back: " in fails(two, "apply", "-f", str(file), "--wait").stderr
    status = fails(two, "rollout", "status", chat)
    assert "chat generation 2 is rolled-back" in status.stdout and "/nowhere" in status.stderr
    eventually(lambda: two.get(f"/v1/deployments/{chat}")["status"]["phase"] == "ready")
    described = deepinfer(two, "describe", chat)
    assert "generation 1 runs" in described and "RolledBack" in described
    assert deepinfer(two, "rollout", "undo", chat).startswith("chat is at generation 3; chat is ready")


def test_explanations_and_events_name_replicas_and_devices(two: Fleet, chat: str) -> None:
    explained = deepinfer(two, "explain", chat)
    for replica in two.replicas(chat):
        assert f"{replica['id']}" in explained
    assert "is taken by chat-" in explained and "stays: what runs is left where it runs" in explained
    assert json.loads(deepinfer(two, "explain", chat, "-o", "json"))["missing"] == 0
    happened = eventually(lambda: [line for line in deepinfer(two, "events", chat).splitlines() if " Ready " in line])
    assert "deployments/chat" in happened[0]
    assert "Events:" in deepinfer(two, "describe", chat)
    assert "Connected" in deepinfer(two, "events", "node-2")
    assert command(two, "events", "nobody").returncode == 4
    assert json.loads(deepinfer(two, "events", "--limit", "1", "-o", "json"))[0]["about"]


def test_a_node_is_drained_and_comes_back_by_a_rebalance(two: Fleet) -> None:
    deepinfer(two, "deploy", "sim/pair", "--engine", "sim", "--replicas", "2", "--device", "cpu")
    assert nodes_of(two, "pair") == ["node-1", "node-2"]
    assert deepinfer(two, "drain", "node-2") == "node-2 is drained\n"
    assert [r["node"] for r in two.replicas("pair")] == ["node-1", "node-1"]
    assert deepinfer(two, "get", "nodes", "node-2").splitlines()[1].split()[:2] == ["node-2", "draining"]
    assert deepinfer(two, "uncordon", "node-2") == "node-2 is ready\n"
    dry = deepinfer(two, "rebalance", "--dry-run").splitlines()
    assert dry[0].startswith("1 would move") and "on node-2 (cpu) starts" in dry[1]
    deepinfer(two, "rebalance")
    eventually(lambda: nodes_of(two, "pair") == ["node-1", "node-2"], 60)
    eventually(lambda: deepinfer(two, "rebalance").startswith("every replica has the best place"))
    deepinfer(two, "delete", "pair")


def test_what_has_no_other_place_stays_and_a_drain_says_so(two: Fleet, chat: str) -> None:
    done = fails(two, "drain", "node-2", "--timeout", "3")
    assert "has no other place: " in done.stderr and "`deepinfer uncordon node-2` takes it back" in done.stderr
    assert nodes_of(two, chat) == ["node-1", "node-2"]
    assert deepinfer(two, "uncordon", "node-2") == "node-2 is ready\n"


@pytest.mark.parametrize(
    "arguments",
    [("cordon", "x"), ("uncordon", "x"), ("drain", "x"), ("node", "lost", "x"), ("node", "forget", "x")],
)
def test_a_node_nobody_knows_is_exit_code_4_and_names_those_there_are(two: Fleet, arguments: tuple[str, ...]) -> None:
    done = command(two, *arguments)
    assert (done.returncode, "the nodes are: node-1, node-2" in done.stderr) == (4, True)


def test_a_node_is_called_lost_and_not_forgotten_while_its_engines_answer(two: Fleet, chat: str) -> None:
    assert "is connected" in fails(two, "node", "lost", "node-2").stderr
    two.workers["node-2"].kill()
    two.workers.pop("node-2").wait()

    eventually(lambda: two.get("/v1/nodes/node-2")["state"] == "away")
    assert "may come back" in fails(two, "node", "forget", "node-2").stderr
    assert "lost" in deepinfer(two, "node", "lost", "node-2")
    assert "still answers" in fails(two, "node", "forget", "node-2").stderr  # its engine outlived its agent
    two.http.patch(f"/v1/deployments/{chat}", json={"replicas": 1}).raise_for_status()
    two.start_worker("node-2")
    assert deepinfer(two, "uncordon", "node-2") == "node-2 is ready\n"
    two.http.patch(f"/v1/deployments/{chat}", json={"replicas": 2}).raise_for_status()
    two.wait_ready(chat)


def test_an_alias_is_another_name_to_chat_with(two: Fleet, chat: str) -> None:
    assert deepinfer(two, "alias", "set", "org/other", "chat=2") == "org/other is chat\n"
    eventually(lambda: "org/other" in [model.id for model in two.openai.models.list()])
    assert deepinfer(two, "chat", "org/other", "hello", "--max-tokens", "3").strip()
    listed = deepinfer(two, "alias", "list").splitlines()
    assert [line.split() for line in listed] == [["NAME", "TARGETS", "MESSAGE"], ["org/other", "chat"]]
    assert "is a deployment" in fails(two, "alias", "set", "chat", "chat").stderr
    assert deepinfer(two, "alias", "remove", "org/other") == "org/other is no alias any more\n"
    assert command(two, "alias", "remove", "org/other").returncode == 4
