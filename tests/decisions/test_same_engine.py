"""Whether a running engine serves another spec too, also where one of them was written by a newer version."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.control_plane.scheduler.fit import same_engine
from deepinfer.fleet.spec import DeploymentSpec

IMAGE = {"backend": "docker", "docker_image": "image:1"}


def spec(**fields: Any) -> DeploymentSpec:
    return DeploymentSpec.model_validate({"model": "m", **fields})


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({}, {"replicas": 3, "priority": 1, "role": "decode"}, True),
        ({}, {"max_model_len": 64}, False),
        ({}, {"newer": "its default"}, True),
        ({"newer": "x"}, {"newer": "x"}, True),
        ({"newer": "x"}, {"newer": "y"}, False),
        ({"newer": "x"}, {"max_model_len": 64}, False),
        ({**IMAGE, "docker": {"ipc": "host"}}, {**IMAGE, "docker": {"ipc": "host", "newer": "its default"}}, True),
        ({**IMAGE, "docker": {"newer": "x"}}, {**IMAGE, "docker": {"newer": "y"}}, False),
        ({**IMAGE, "docker": {"ipc": "host"}}, {**IMAGE, "docker": {"newer": "x"}}, False),
    ],
)
def test_an_engine_is_another_one_where_both_say_so(one: dict[str, Any], other: dict[str, Any], same: bool) -> None:
    assert same_engine(spec(**one), spec(**other)) is same
    assert same_engine(spec(**other), spec(**one)) is same
