"""Who may come in, decided from values: keys, paths, and what browsers tell of their pages."""

from __future__ import annotations

from typing import Any

import pytest

from deepinfer.cli.failures import InvalidInput
from deepinfer.cli.keys import key_row, seconds_of
from deepinfer.control_plane.access.caller import LOCAL_ADMIN, Caller, refuse_other_models
from deepinfer.control_plane.access.key_ring import KeyRing, digest_shown
from deepinfer.control_plane.access.openness import check_openness
from deepinfer.control_plane.access.web_pages import WebPages
from deepinfer.control_plane.gateway.multipart import model_in_form
from deepinfer.control_plane.gateway.permission import wanted_role
from deepinfer.control_plane.openai_errors import ForeignOrigin, InvalidApiKey, InvalidHost, ModelNotAllowed
from deepinfer.engine_shim.frames import EngineCall
from deepinfer.fleet import keys
from deepinfer.fleet.api_key import ApiKey, KeyLimits, Role, new_secret
from deepinfer.fleet.config import Config, InvalidConfig, ServeConfig
from deepinfer.fleet.errors import InvalidRequest, StoreUnavailable
from deepinfer.fleet.snapshot import Snapshot, snapshot_of
from tests.keyed import ADMIN_TOKEN, USER, key, ring_of

ANYBODY, ANY_KEY, ADMIN = None, Role.USER, Role.ADMIN


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("GET", "/health", ANYBODY),
        ("HEAD", "/ready", ANYBODY),
        ("POST", "/health", ADMIN),
        ("GET", "/health/", ADMIN),
        ("GET", "//health", ADMIN),
        ("POST", "/v1/chat/completions", ANY_KEY),
        ("DELETE", "/v1/responses/resp_1", ANY_KEY),
        ("POST", "/v1/responses/resp_1/cancel", ANY_KEY),
        ("POST", "/v1/images/generations", ANY_KEY),
        ("GET", "/v1/models", ANY_KEY),
        ("GET", "/v1/models/org/model", ANY_KEY),
        ("POST", "/v1/chat/completions/../../deployments", ADMIN),
        ("POST", "/v1/chat/completions//x", ADMIN),
        ("POST", "/v1/chat/completions\n", ADMIN),
        ("POST", "/V1/chat/completions", ADMIN),
        ("POST", "//v1/chat/completions", ADMIN),
        ("POST", "/reset_prefix_cache", ADMIN),
        ("POST", "/v1/load_lora_adapter", ADMIN),
        ("GET", "/v1/deployments", ADMIN),
        ("GET", "/v1/api_keys", ADMIN),
        ("POST", "/api/models/load", ADMIN),
        ("GET", "/metrics", ADMIN),
        ("GET", "/docs", ADMIN),
        ("GET", "/openapi.json", ADMIN),
        ("GET", "/", ADMIN),
        ("GET", "", ADMIN),
    ],
)
def test_what_a_path_wants(method: str, path: str, wanted: Role | None) -> None:
    assert wanted_role(method, path, asks_engine=False) is wanted


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/v1/models/chat", "/metrics"])
def test_an_open_path_that_a_query_sends_to_an_engine_is_not_open(path: str) -> None:
    assert wanted_role("GET", path, asks_engine=True) is ADMIN


def test_a_ring_knows_the_keys_of_the_last_view_and_no_other() -> None:
    ring = KeyRing(ADMIN_TOKEN)
    with pytest.raises(StoreUnavailable, match="not read its API keys yet"):
        ring.caller(digest_shown(ADMIN_TOKEN.encode()))
    fields: dict[str, Any] = {"models": ("chat",), "limits": KeyLimits(tokens_per_minute=7), "priority": 3}
    ring.update(Snapshot(api_keys=(key(USER, "team", **fields),)))
    known = ring.caller(digest_shown(USER.encode()))
    assert (known.name, known.role, *known.models, known.priority) == ("team", Role.USER, "chat", 3)
    assert known.limits == KeyLimits(tokens_per_minute=7)
    assert ring.caller(digest_shown(ADMIN_TOKEN.encode())) is LOCAL_ADMIN
    for secret in ("", "di-other", USER[:-1], USER + "x", key(USER).sha256, key(USER).id):
        with pytest.raises(InvalidApiKey):
            ring.caller(digest_shown(secret.encode()))
    ring.update(Snapshot())
    with pytest.raises(InvalidApiKey):
        ring.caller(digest_shown(USER.encode()))


def test_a_key_expires_by_the_clock() -> None:
    now = 0.0
    ring = KeyRing(ADMIN_TOKEN, lambda: now)
    ring.update(Snapshot(api_keys=(key(USER, expires_at="1970-01-01T01:00:10+01:00"),)))
    now = 9.9
    assert ring.caller(digest_shown(USER.encode())).name == "key"
    now = 10.0
    with pytest.raises(InvalidApiKey, match="expired"):
        ring.caller(digest_shown(USER.encode()))


def test_digests_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by digest, which tells nothing of the secret, and compared besides: a lookup alone opens nothing."""
    ring = ring_of(key(USER))
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: False)
    with pytest.raises(InvalidApiKey):
        ring.caller(digest_shown(USER.encode()))


def test_secrets_cannot_be_guessed() -> None:
    found = {new_secret() for _ in range(1000)}
    assert len(found) == 1000 and all(secret.startswith("di-") and len(secret) >= 3 + 192 / 6 for secret in found)


def test_what_a_newer_version_says_of_a_key_is_kept_and_an_unknown_role_opens_nothing() -> None:
    newer = key(USER).to_json()[:-1] + b', "tenant": "a"}'
    fleet = snapshot_of({keys.api_key("a"): newer, keys.api_key("b"): newer.replace(b'"user"', b'"auditor"')})
    (known,) = fleet.api_keys
    assert ApiKey.model_validate_json(known.model_copy(update={"priority": 1}).to_json()).model_extra == {"tenant": "a"}
    assert list(fleet.unreadable) == [keys.api_key("b")]


@pytest.mark.parametrize(
    ("models", "model", "query", "body", "allowed"),
    [
        ((), "any", b"model=any", b"bytes", True),
        (("chat",), "chat", b"", b'{"model": "chat"}', True),
        (("chat",), "org/chat", b"", b'{"model": "org/chat"}', False),
        (("chat",), "chat", b"model=chat", b"", True),
        (("chat",), "chat", b"model=chat", b'{"model": "adapter"}', False),
    ],
)
def test_a_key_that_is_limited_to_models_gets_no_other(
    models: tuple[str, ...], model: str, query: bytes, body: bytes, allowed: bool
) -> None:
    caller = Caller("1", "team", models=frozenset(models))
    call = EngineCall("POST", "/v1/completions", query, (), body)
    if allowed:
        refuse_other_models(caller, model, call)
    else:
        with pytest.raises(ModelNotAllowed):
            refuse_other_models(caller, model, call)


def test_a_form_has_no_part_that_an_engine_could_read_and_this_gateway_not() -> None:
    """The last "model" counts there, so one that is not seen here would go around a key's models."""
    part = b'--X\r\nContent-Disposition: form-data; name="model"\r\n%b\r\n%b\r\n'
    content_type = b"multipart/form-data; boundary=X"
    assert (
        model_in_form(part % (b"", b"chat") + part % (b"", b"adapter") + b"--X--", content_type, frozenset())
        == "adapter"
    )
    long = part % (b"X-Long: " + b"x" * 9000 + b"\r\n", b"adapter")
    with pytest.raises(InvalidRequest, match="headers of a part"):
        model_in_form(part % (b"", b"chat") + long + b"--X--", content_type, frozenset())


OURS, THEIRS = b"http://localhost:8082", b"https://evil.example"
HOST = {b"host": b"localhost:8082"}


@pytest.mark.parametrize(
    ("sent", "reading", "acting"),
    [
        ({}, True, True),
        (HOST, True, True),
        ({b"host": b"[::1]:8082"}, True, True),
        ({**HOST, b"origin": OURS}, True, True),
        ({**HOST, b"origin": THEIRS}, True, False),
        ({**HOST, b"origin": b"null"}, True, False),
        ({**HOST, b"origin": b"http://localhost:3000"}, True, False),
        ({**HOST, b"origin": b"https://chat.example"}, True, True),  # configured
        ({**HOST, b"sec-fetch-site": b"cross-site"}, True, False),
        ({**HOST, b"sec-fetch-site": b"same-site"}, True, False),
        ({**HOST, b"sec-fetch-site": b"same-origin"}, True, True),
        ({b"host": b"evil.example:8082", b"origin": b"http://evil.example:8082"}, False, False),
        ({b"host": b"127.0.0.1.evil.example"}, False, False),
        ({b"host": b"10.0.0.1"}, False, False),
        ({b"origin": OURS}, True, False),
    ],
)
def test_pages_of_others_may_not_use_loopback(sent: dict[bytes, bytes], reading: bool, acting: bool) -> None:
    pages = WebPages(frozenset((b"https://chat.example",)))
    for acts, allowed in ((False, reading), (True, acting)):
        if allowed:
            pages.refuse(sent, acts=acts)
        else:
            with pytest.raises(ForeignOrigin):
                pages.refuse(sent, acts=acts)


@pytest.mark.parametrize(
    "host", [b"a b", b"a/../b", b"a@b", b"[::1", b"a:b", b"a:123456", b"evil.example/v1?", b"\xff", b"[x]:1"]
)
def test_a_host_must_be_one_whoever_is_asked(host: bytes) -> None:
    for pages in (WebPages(keyless=False), WebPages(on_loopback=False)):
        pages.refuse({b"host": b"any.example:80"}, acts=True)
        with pytest.raises(InvalidHost):
            pages.refuse({b"host": host}, acts=False)


@pytest.mark.parametrize(
    ("host", "authentication", "required"),
    [
        ("127.0.0.1", "auto", False),
        ("localhost", "auto", False),
        ("::1", "auto", False),
        ("127.0.0.1", "required", True),
        ("0.0.0.0", "auto", True),  # noqa: S104
        ("::", "auto", True),
        ("10.0.0.1", "auto", True),
        ("localhost.example.org", "auto", True),
        ("0.0.0.0", "off", False),  # noqa: S104
    ],
)
def test_keys_are_required_unless_only_this_machine_can_ask(host: str, authentication: Any, required: bool) -> None:
    assert ServeConfig(host=host, authentication=authentication).requires_keys is required


def test_an_open_server_is_warned_of_and_not_open_to_all_pages(caplog: pytest.LogCaptureFixture) -> None:
    check_openness(ServeConfig(host="10.0.0.1", authentication="off"))
    assert "10.0.0.1 without authentication: whoever reaches it" in caplog.text
    with pytest.raises(InvalidConfig, match="wants API keys"):
        check_openness(ServeConfig(cors_origins=("*",)))
    check_openness(ServeConfig(cors_origins=("*",), authentication="required"))


@pytest.mark.parametrize("origin", ["https://chat.example/", "chat.example", "HTTPS://chat.example", "null", ""])
def test_an_origin_is_configured_as_browsers_send_it(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Config.model_validate({"serve": {"cors_origins": [origin]}})


def test_a_key_in_a_row_and_its_time_in_words() -> None:
    view = key(USER, "team", models=("a", "b"), limits=KeyLimits(concurrent_streams=2)).model_dump(mode="json")
    assert key_row(view)[1:] == ["team", "user", "a, b", "-", "-", "2", "0", "2026-01-01T00:00:00Z", "-"]
    assert [seconds_of(time) for time in ("90s", "2h", "30d", "1w")] == [90, 7200, 2_592_000, 604_800]
    for wrong in ("", "30", "d", "-1d", "1.5h", "1y"):
        with pytest.raises(InvalidInput, match="such as 30d"):
            seconds_of(wrong)
