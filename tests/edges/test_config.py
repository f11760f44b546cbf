"""The data in configs/ is valid, and a wrong configuration says what is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from deepinfer.fleet.config import Config, InvalidConfig, load_config

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
