"""The file by which the command line comes in on the server's own machine: whose it is, and when it is gone."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from deepinfer.cli.credentials import secret_for
from deepinfer.fleet.admin_token import admin_token, admin_token_file, offered


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("DEEPINFER_API_KEY", raising=False)
    return tmp_path


def test_it_is_its_users_alone_and_gone_with_its_server() -> None:
    with offered("di-first", 8082):
        path = admin_token_file(8082)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert admin_token(8082) == "di-first" and admin_token(8083) is None
        with offered("di-second", 8082):  # a server that was killed has left the first one
            assert admin_token(8082) == "di-second"
        assert admin_token(8082) is None
        path.write_text("di-successor")
        path.chmod(0o600)
    assert admin_token(8082) == "di-successor"


def test_what_others_could_have_put_there_is_not_read(home: Path) -> None:
    with offered("di-first", 8082):
        admin_token_file(8082).chmod(0o640)
        assert admin_token(8082) is None
    admin_token_file(8082).unlink()
    elsewhere = home / "elsewhere"
    elsewhere.write_text("di-other")
    elsewhere.chmod(0o600)
    admin_token_file(8082).symlink_to(elsewhere)
    assert admin_token(8082) is None


def test_a_folder_that_takes_no_file_keeps_nobody_from_serving(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    (home / "deepinfer").write_text("in the way")
    with offered("di-first", 8082):
        assert "No admin token could be written" in caplog.text
    assert "di-first" not in caplog.text


def test_it_is_shown_to_this_machine_only_and_a_key_of_the_users_goes_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with offered("di-first", 8082):
        for url in ("http://127.0.0.1:8082", "http://localhost:8082", "http://[::1]:8082", "http://0.0.0.0:8082"):
            assert secret_for(url) == "di-first"
        for url in ("http://127.0.0.1:8083", "http://example.org:8082", "http://127.0.0.1.example.org:8082"):
            assert secret_for(url) is None
        monkeypatch.setenv("DEEPINFER_API_KEY", "di-mine")
        assert secret_for("http://127.0.0.1:8082") == secret_for("https://example.org") == "di-mine"
