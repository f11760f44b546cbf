"""What the command line makes of the API's answers and of the user's words: values in, values out."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.cli.alias import split_words, targets_of
from deepinfer.cli.description import spec_lines
from deepinfer.cli.differences import differences
from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.fleet import store_sentence
from deepinfer.cli.foresight import all_dry_run_lines
from deepinfer.cli.names import deployment_name, node_name
from deepinfer.cli.spec_options import engine_args, pairs
from deepinfer.cli.tables import table
from deepinfer.cli.up_plan import Plan, welcome
from deepinfer.cli.views import Outcome, Progress, progress_of, replica_row
from deepinfer.cli.waiting import LASTS_SECONDS, Settling
from deepinfer.control_plane.management.admission import default_name
from deepinfer.fleet.spec import DeploymentSpec


def deployment(phase: str, *replicas: dict[str, Any], wanted: int = 1, message: str = "") -> dict[str, Any]:
    status = {"phase": phase, "ready": 0, "wanted": wanted, "message": message}
    return {"name": "chat", "status": status, "replica_list": list(replicas)}


def replica(number: int, phase: str | None, message: str = "") -> dict[str, Any]:
    return {"id": f"chat-abcde-{number}", "phase": phase, "message": message, "intent": "serve"}


@pytest.mark.parametrize(
    ("view", "outcome", "sentence"),
    [
        (deployment("ready"), Outcome.READY, "chat is ready (0 of 1 replicas)"),
        (deployment("stopped", message="it has 0 replicas"), Outcome.READY, "chat is stopped: it has 0 replicas"),
        (deployment("failed", message="no such argument"), Outcome.FAILED, "chat failed: no such argument"),
        (deployment("refused", message="a: too small"), Outcome.REFUSED, "chat has no place: a: too small"),
        (deployment("draining", message="drains"), Outcome.PENDING, "chat: drains"),
        (deployment("progressing", replica(0, "preparing", "fetching")), Outcome.PENDING, "chat: preparing: fetching"),
        (deployment("progressing", replica(0, "starting")), Outcome.PENDING, "chat: starting"),
        (deployment("progressing", replica(0, None), message="waiting"), Outcome.PENDING, "chat: waiting"),
        (
            deployment("progressing", replica(0, "ready"), replica(1, "starting", "loading"), wanted=2),
            Outcome.PENDING,
            "chat: 0 of 2 ready; chat-abcde-1 starting: loading",
        ),
    ],
)
def test_a_deployment_in_one_sentence(view: dict[str, Any], outcome: Outcome, sentence: str) -> None:
    assert progress_of(view) == Progress(outcome, sentence)


def test_a_rolled_back_generation_is_not_what_was_asked_for() -> None:
    view = deployment("ready", message="generation 2 was rolled back: it crashed; generation 1 runs")
    view["status"]["outcome"] = "rolled-back"
    sentence = "chat is not as asked for: generation 2 was rolled back: it crashed; generation 1 runs"
    assert progress_of(view) == Progress(Outcome.FAILED, sentence)


@pytest.mark.parametrize(
    ("seen", "phase", "message"),
    [
        ({}, "ready", ""),
        ({"phase": None}, "pending", ""),
        ({"phase": "failed", "message": "no such file"}, "failed", "no such file"),
        ({"intent": "drain", "why": "generation 3 replaces it"}, "draining", "generation 3 replaces it"),
        (
            {"intent": "drain", "why": "node n1 is leaving", "phase": "draining", "message": "finishing"},
            "draining",
            "node n1 is leaving; finishing",
        ),
        ({"node_alive": False}, "ready", "not connected, last told: ready"),
        (
            {"intent": "drain", "why": "node n1 is lost", "node_alive": False},
            "draining",
            "node n1 is lost; not connected, last told: ready",
        ),
        (
            {"intent": "drain", "why": "node n1 is lost", "node_alive": False, "phase": None},
            "draining",
            "node n1 is lost; not connected",
        ),
    ],
)
def test_a_replica_that_drains_says_why_and_is_not_called_ready(seen: dict[str, Any], phase: str, message: str) -> None:
    known = replica(0, "ready") | {
        "why": "",
        "node_alive": True,
        "deployment": "chat",
        "node": "n1",
        "devices": ["cpu"],
    }
    known |= {"restarts": 0, "memory_bytes": None, "endpoint": None}
    assert replica_row(known | seen) == ["chat-abcde-0", "chat", "n1", "cpu", phase, "0", "-", "-", "both", message]


def test_specs_are_compared_field_by_field_and_objects_part_by_part() -> None:
    before = {"name": "chat", "replicas": 1, "env": {"A": "1", "B": "2"}, "docker": None, "rollout": {"max_surge": 1}}
    after = {"replicas": 2, "env": {"B": "2", "C": "3"}, "docker": {"ipc": "host"}, "rollout": {"max_surge": 1}}
    assert [difference.line() for difference in differences(before, after)] == [
        "replicas: 1 -> 2",
        'env.C: null -> "3"',
        'env.A: "1" -> null',
        'docker: null -> {"ipc": "host"}',
    ]
    assert differences(before, before) == []


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"engine_args": {"max_num_seqs": 8, "list": ["a"]}}, 'engine_args:  max_num_seqs=8, list=["a"]'),
        ({"env": {"A": "1 2", "B": "3"}}, 'env:       A="1 2", B=3'),
        ({"anti_affinity": ["chat", "other"]}, "anti_affinity:  chat, other"),
        ({"strategy": "pack"}, "strategy:  pack"),
        ({"role": "decode"}, "role:      decode"),
        ({"rollout": {"max_surge": 2}}, "rollout:   2 max surge, 0 max unavailable, 900 s deadline"),
        (
            {"rollout": {"new_generation_percent": 5}},
            "rollout:   1 max surge, 0 max unavailable, 900 s deadline, 5 % of requests to the new generation",
        ),
        ({"max_model_len": 64}, "max_model_len:  64"),
        ({"docker": {"ipc": "host", "pull": "never"}, "backend": "docker"}, "docker:    pull=never, ipc=host"),
    ],
)
def test_a_spec_is_described_by_what_differs_from_the_defaults(asked: dict[str, Any], line: str) -> None:
    spec = DeploymentSpec.model_validate({"model": "org/model", "engine": "sim", "replicas": 2, **asked})
    lines = spec_lines(spec.model_dump(mode="json"))
    assert line in lines
    assert [told.split() for told in lines if not told.startswith(tuple(asked))] == [
        ["model:", "org/model"],
        ["engine:", "sim"],
        ["replicas:", "2"],
    ]


def test_a_field_of_a_newer_server_is_described_too() -> None:
    assert spec_lines({"model": "m", "later": {"a": 1}, "nothing": None}) == ["model:  m", "later:  a=1"]


def test_a_dry_run_of_several_tells_each_its_own_and_others_at_the_end() -> None:
    def part(deployment: str, **more: Any) -> dict[str, Any]:
        return {"deployment": deployment, "id": None, "node": "a", "devices": ["cpu"], "why": "", **more}

    told = {
        "data": [{"name": "new", "generation": 1, "changes": True}, {"name": "old", "generation": 3, "changes": False}],
        "foreseen": {
            "kept": [part("old", id="old-0")],
            "started": [part("new")],
            "stopped": [part("weak", id="weak-0", why="new of priority 5 takes its devices")],
            "refused": [{"deployment": "weak", "missing": 1, "waits_for": "", "reasons": {"a": "is full"}}],
            "is_final": False,
        },
    }
    assert all_dry_run_lines(told) == [
        "new would be created",
        "  + new on a (cpu) starts",
        "old would stay as it is",
        "  = old-0 on a (cpu) stays",
        "besides:",
        "  - weak-0 on a (cpu) stops: new of priority 5 takes its devices",
        "  ! 1 of weak without a place: a is full",
        "  ! and more: so many steps were not followed to their end",
    ]


def test_ready_is_final_at_once_and_a_refusal_only_when_it_lasts() -> None:
    assert Settling().final(Progress(Outcome.READY, ""), 0)
    settling, lasting = Settling(), LASTS_SECONDS[Outcome.REFUSED]
    refused, pending = Progress(Outcome.REFUSED, ""), Progress(Outcome.PENDING, "")
    assert not settling.final(refused, 0)
    assert not settling.final(pending, lasting)  # a node joined
    assert not settling.final(refused, lasting + 1)
    assert settling.final(refused, 2 * lasting + 1)
    assert not Settling().final(pending, 1e9)


def test_only_the_last_column_is_cut_and_nothing_is_padded_at_the_end() -> None:
    rows = [["a", "first\nsecond"], ["much-longer", "x" * 50]]
    assert table(("NAME", "MESSAGE"), rows) == [
        "NAME         MESSAGE",
        "a            first second",
        f"much-longer  {'x' * 50}",
    ]
    assert table(("NAME", "MESSAGE"), rows, width=40)[2] == f"much-longer  {'x' * 26}…"


def test_colours_do_not_move_columns() -> None:
    plain, coloured = (table(("PHASE", "ID"), [["ready", "a"], ["-", "b"]], coloured=c) for c in (False, True))
    assert coloured[1] != plain[1]
    assert [line.replace("\x1b[32m", "").replace("\x1b[0m", "") for line in coloured] == plain


def test_engine_arguments_are_json_or_text() -> None:
    given = ["max_num_seqs=8", "mode=fast", 'list=["a"]', "empty=", "formula=a=b", "on=true"]
    wanted = {"max_num_seqs": 8, "mode": "fast", "list": ["a"], "empty": "", "formula": "a=b", "on": True}
    assert engine_args(given) == wanted
    assert engine_args(None) == {}


@pytest.mark.parametrize("pair", ["novalue", "=x", ""])
def test_a_pair_needs_a_key_and_a_value(pair: str) -> None:
    with pytest.raises(InvalidInput, match="--env wants K=V"):
        pairs([pair], "--env")


@pytest.mark.parametrize("model", ["smollm2", "Qwen/Qwen3-0.6B", "a/b:c_D/", "ä-x", "x" * 80, "Org/.hidden."])
def test_the_name_made_here_is_the_name_the_server_makes(model: str) -> None:
    assert deployment_name(model) == default_name(model)


@pytest.mark.parametrize(
    ("hostname", "name"), [("Mac-Book.local", "mac-book"), ("gpu_01.example.org", "gpu_01"), ("---", "node")]
)
def test_a_hostname_becomes_a_node_name(hostname: str, name: str) -> None:
    assert node_name(hostname) == name


@pytest.mark.parametrize(
    ("host", "port", "url", "chat"),
    [
        ("127.0.0.1", 8082, "http://127.0.0.1:8082", "chat smollm2\n"),
        ("127.0.0.1", 9000, "http://127.0.0.1:9000", "chat smollm2 --server http://127.0.0.1:9000\n"),
        ("::1", 9000, "http://[::1]:9000", "chat smollm2 --server 'http://[::1]:9000'\n"),
    ],
)
def test_the_welcome_tells_addresses_that_work_from_here(host: str, port: int, url: str, chat: str) -> None:
    told = welcome(Plan("smollm2", {}, host, port, None), 1.0)
    assert f"curl {url}/v1/chat/completions" in told
    assert chat in told
    assert "Authorization" not in told
    assert "Bearer $DEEPINFER_API_KEY" in welcome(Plan("smollm2", {}, host, port, None, keyed=True), 1.0)


@pytest.mark.parametrize(
    ("trouble", "stale_since", "told"),
    [
        ("", None, "sound"),
        ("", "2026-01-01T00:00:00+00:00", "away; the log of serve says why (known is what was there at 2026-01-01"),
        ("It was wiped.", "2026-01-01T00:00:00+00:00", "It was wiped. (known is what was there at 2026-01-01"),
    ],
)
def test_a_store_that_is_away_is_not_called_sound(trouble: str, stale_since: str | None, told: str) -> None:
    assert store_sentence({"trouble": trouble, "alarm": "", "stale_since": stale_since}).startswith(told)
    full = {"trouble": trouble, "alarm": "etcd's database is full", "stale_since": stale_since}
    assert "sound" not in store_sentence(full) and "is full" in store_sentence(full)


def test_an_aliass_targets_have_weights_and_are_told_as_shares() -> None:
    asked = targets_of(["chat-v1=2", "chat-v2"])
    assert asked == [{"deployment": "chat-v1", "weight": 2}, {"deployment": "chat-v2", "weight": 1}]
    assert split_words({"targets": asked}) == "chat-v1 66.7 %, chat-v2 33.3 %"
    assert split_words({"targets": asked[:1]}) == "chat-v1"
    for wrong in ("=3", "chat=", "chat=x", "chat=-1", "chat=1.5", "chat=٣", ""):
        with pytest.raises(InvalidInput, match="write DEPLOYMENT or DEPLOYMENT=WEIGHT"):
            targets_of([wrong])
