"""The data in configs/ is valid, and a wrong configuration says what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from deepinfer.agent.command_line import told
from deepinfer.agent.inventory import capped
from deepinfer.fleet.config import Config, InvalidConfig, load_config
from deepinfer.fleet.resources import Device

CONFIGS = Path(__file__).parents[2] / "configs"


def test_the_default_file_says_what_the_defaults_are() -> None:
    assert load_config(CONFIGS / "default.toml") == Config()


def test_every_known_model_has_one_source() -> None:
    for name, entry in tomllib.loads((CONFIGS / "models.toml").read_text()).items():
        assert ("hub" in entry) != ("wheel" in entry), name
        assert entry["description"], name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[serve]\nprot = 1\n", "serve.prot"),
        ("[serve]\nport = 99999\n", "serve.port"),
        ("[serve\n", "not valid TOML"),
        ('[worker]\nlabels = {zone = "a b"}\n', "worker.labels.zone"),
        ("[worker]\nmax_vram_mb = 0\n", "worker.max_vram_mb"),
        ("[worker]\nlow_memory_share = 1\n", "worker.low_memory_share"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(InvalidConfig, match=told) as refused:
        load_config(file)
    assert str(file) in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"none\.toml"):
        load_config(tmp_path / "none.toml")


def test_labels_of_the_command_line_go_over_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text('[worker]\nlabels = {zone = "a", disk = "ssd"}\n')
    name, config = told(["-n", "node-1", "-c", str(file), "--label", "zone=b", "--label", "example.org/gpu="])
    assert (name, config.worker.labels) == ("node-1", {"zone": "b", "disk": "ssd", "example.org/gpu": ""})
    assert not config.worker.drain_on_stop


@pytest.mark.parametrize("label", ["zone", "=a", "zone=a b", "zone=-", "ö=1", f"{'a' * 64}=1"])
def test_a_label_that_is_none_is_refused_with_how_to_write_it(label: str) -> None:
    with pytest.raises(InvalidConfig, match="write KEY=VALUE") as refused:
        told(["-n", "node-1", "--label", label])
    assert f'"{label}"' in str(refused.value)


def test_a_cap_of_the_command_line_goes_over_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "worker.toml"
    file.write_text("[worker]\nmax_vram_mb = 500\n")
    assert told(["-n", "node-1", "-c", str(file)])[1].worker.max_vram_mb == 500
    assert told(["-n", "node-1", "-c", str(file), "--max-vram-mb", "400"])[1].worker.max_vram_mb == 400
    assert told(["-n", "node-1"])[1].worker.max_vram_mb is None


@pytest.mark.parametrize("cap", ["0", "-1", "1.5", "much", ""])
def test_a_cap_that_leaves_nothing_is_refused(cap: str) -> None:
    with pytest.raises(InvalidConfig, match="whole number above zero"):
        told(["-n", "node-1", "--max-vram-mb", cap])


def test_a_cap_takes_memory_and_never_adds_any() -> None:
    devices = tuple(Device(id=f"sim:{n}", kind="sim", name="", memory_bytes=n * 10**9) for n in (1, 3))
    assert [device.memory_bytes for device in capped(devices, 2000)] == [10**9, 2 * 10**9]
    assert capped(devices, None) == devices
