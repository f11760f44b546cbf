"""Which engine_args an installed engine takes: a short list of flags as vLLM has them, and what is said of others."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.engine_environments.flags import EngineFlags, Flag, check_flags, check_reserved
from deepinfer.fleet.errors import InvalidRequest
from deepinfer.fleet.spec import EngineKind

SWITCHED = "enable_prefix_caching of vLLM 0.32.0 is switched with true or false; it takes no value."
HOST = "engine_args may not set --host: the engine has no port of its own; clients talk to the gateway."
KNOWN = EngineFlags(
    engine=EngineKind.VLLM,
    version="0.32.0",
    flags=(
        Flag(options=("--max-num-seqs",), takes_value=True),
        Flag(options=("--enable-prefix-caching", "--no-enable-prefix-caching"), takes_value=False),
        Flag(options=("--tensor-parallel-size", "-tp"), takes_value=True),
        Flag(options=("--load-format",), takes_value=True, choices=("auto", "dummy", "safetensors")),
        Flag(options=("--kv-transfer-config",), takes_value=True),
        Flag(options=("--trust-remote-code", "--no-trust-remote-code"), takes_value=False),
        Flag(options=("--host",), takes_value=True),
        Flag(options=("--speculative-config", "-sc"), takes_value=True),
    ),
)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"max_num_seqs": 8},
        {"max-num-seqs": 8},
        {"--max-num-seqs": 8},
        {"enable_prefix_caching": True},
        {"no_enable_prefix_caching": True},
        {"load_format": "dummy"},
        {"kv_transfer_config": {"kv_connector": "x"}},
        {"kv_transfer_config.kv_connector": "x"},
        {"trust_remote_code": True},
        {"sc": {"method": "ngram"}},
    ],
)
def test_flags_are_known_by_every_spelling(args: dict[str, Any]) -> None:
    check_flags(args, KNOWN)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"max_num_seq": 8}, "vLLM 0.32.0 has no argument max_num_seq; did you mean max_num_seqs?"),
        ({"max-num-sqs": 8}, "vLLM 0.32.0 has no argument max-num-sqs; did you mean max_num_seqs?"),
        ({"zzz": 8}, "vLLM 0.32.0 has no argument zzz."),
        ({"": 8}, "vLLM 0.32.0 has no argument ."),
        ({"no_max_num_seqs": True}, "vLLM 0.32.0 has no argument no_max_num_seqs; did you mean max_num_seqs?"),
        ({"enable_prefix_caching": "yes"}, SWITCHED),
        ({"load_format": "dumy"}, "load_format of vLLM 0.32.0 cannot be dumy; did you mean dummy?"),
        ({"load_format": 7}, "load_format of vLLM 0.32.0 cannot be 7; choose from auto, dummy, safetensors."),
        ({"tp": 2}, 'engine_args may not set --tensor-parallel-size: use the field "tensor_parallel_size".'),
        ({"host": "::1"}, HOST),
    ],
)  # fmt: skip
def test_other_arguments_are_refused_before_anything_starts(args: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_flags({"max_num_seqs": 4, **args}, KNOWN)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", 'use the field "model"'),
        ("max-model-len", 'use the field "max_model_len"'),
        ("--tensor_parallel_size", 'use the field "tensor_parallel_size"'),
        ("kv_events_config", "deepinfer sets it"),
        ("kv_events_config.endpoint", "deepinfer sets it"),
        ("no_disable_log_stats", "deepinfer reads the statistics"),
        ("api_key", "stored readably"),
        ("api_server_count", "raise replicas"),
    ],
)
def test_reserved_arguments_are_refused_for_every_version(name: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        check_reserved(EngineKind.VLLM, {name: "x"})
    assert refused.value.param == f"engine_args.{name}"
    check_reserved(EngineKind.SIM, {name: "x"})
