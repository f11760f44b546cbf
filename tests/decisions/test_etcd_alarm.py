"""What is told of etcd's alarms."""

from __future__ import annotations

import pytest

from deepinfer.fleet.errors import StoreFull
from deepinfer.fleet.etcd_alarm import alarm_told


@pytest.mark.parametrize(
    ("alarms", "words"),
    [
        (["NOSPACE"], str(StoreFull())),
        (["CORRUPT"], "replace the one that `etcdctl alarm list` names"),
        (["LATER"], "etcd has raised the alarm LATER; see `etcdctl alarm list`."),
    ],
)
def test_every_alarm_is_told_with_the_next_step(alarms: list[str], words: str) -> None:
    assert words in alarm_told(alarms)


def test_an_alarm_of_several_members_is_told_once_and_none_is_told_as_nothing() -> None:
    assert alarm_told(["NOSPACE", "NOSPACE"]) == str(StoreFull())
    assert alarm_told([]) == ""
