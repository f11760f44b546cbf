"""Getting into etcd: TLS from both sides, a login that outlives its token, a namespace; and what is said when not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from deepinfer.etcd.access import Access, address_of
from deepinfer.etcd.client import Client
from deepinfer.fleet.config import EtcdConfig, InvalidConfig, at_endpoints, load_config
from deepinfer.fleet.embedded_etcd import embedded_etcd
from deepinfer.fleet.errors import StoreDenied, StoreUnavailable
from deepinfer.fleet.store import EtcdStore
from deepinfer.fleet.store_access import access_of
from tests.etcd_certificates import Certificates, make_certificates
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.etcd_users import PASSWORD, change_password, fleet_config, want_logins
from tests.etcd_users import ROOT as ROOT_LOGIN

ROOT = "/deepinfer/"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "files")


@pytest.fixture
def guarded(certificates: Certificates) -> Iterator[EtcdCluster]:
    """TLS from both sides, and no key without a login, whose tokens are forgotten after two seconds."""
    with etcd_cluster(1, "--auth-token-ttl=2", certificates=certificates) as cluster:
        want_logins(cluster)
        yield cluster


@pytest.fixture
def guarded_here() -> Iterator[EtcdCluster]:
    """Without TLS, as the embedded one."""
    with etcd_cluster(1) as cluster:
        want_logins(cluster)
        yield cluster


async def test_a_token_that_etcd_forgot_costs_no_call_and_no_news(
    guarded: EtcdCluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = fleet_config(guarded, tmp_path / "password")
    async with (
        EtcdStore.connect(config.endpoints, access=access_of(config)) as store,
        store.lease(5) as lease,
        aclosing(store.changes(ROOT)) as revisions,
    ):
        await anext(revisions)
        first = await store.commit({"/deepinfer/a": b"1"}, lease=lease)
        assert await anext(revisions) == first
        guarded.members[0].kill()  # its tokens lie in memory
        guarded.members[0].start()
        await asyncio.to_thread(guarded.wait_healthy)
        second = await store.commit({"/deepinfer/a": b"2"}, lease=lease)
        assert await anext(revisions) == second
        assert not lease.lost.is_set()
        with pytest.raises(StoreDenied, match="password_file"):
            await store.read("/elsewhere/")
    assert PASSWORD not in caplog.text


async def test_a_rotated_password_is_read_anew_and_until_then_nothing_is_refused_for_good(
    guarded: EtcdCluster, tmp_path: Path
) -> None:
    password_file = tmp_path / "password"
    config = fleet_config(guarded, password_file)
    async with (
        EtcdStore.connect(config.endpoints, access=access_of(config)) as store,
        aclosing(store.changes(ROOT)) as revisions,
    ):
        await store.commit({"/deepinfer/a": b"1"})
        change_password(guarded, "another one")
        with pytest.raises(StoreUnavailable, match="authentication failed"):
            await store.commit({"/deepinfer/a": b"2"})
        looking = asyncio.ensure_future(anext(revisions))  # denied, too, and again and again
        await asyncio.wait({looking}, timeout=1)
        assert not looking.done()
        password_file.write_text("another one")
        await store.commit({"/deepinfer/a": b"3"})
        async with asyncio.timeout(15):
            await looking


async def test_a_watch_that_is_not_permitted_is_denied_as_any_call_is(
    guarded_here: EtcdCluster, tmp_path: Path
) -> None:
    config = fleet_config(guarded_here, tmp_path / "password")
    async with (
        EtcdStore.connect(config.endpoints, access=access_of(config)) as store,
        aclosing(store.watch("/elsewhere/", 1, lambda _: None)) as changes,
    ):
        with pytest.raises(StoreDenied, match="password_file"):
            await anext(changes)


async def test_a_certificates_name_is_a_login(guarded: EtcdCluster, tmp_path: Path) -> None:
    """Then there is no token that could end."""
    guarded.etcdctl("user", "add", "client", "--no-password", login=ROOT_LOGIN)
    guarded.etcdctl("user", "grant-role", "client", "fleet", login=ROOT_LOGIN)
    config = fleet_config(guarded, tmp_path / "password").model_copy(update={"username": None, "password_file": None})
    async with (
        EtcdStore.connect(config.endpoints, access=access_of(config)) as store,
        aclosing(store.changes(ROOT)) as revisions,
    ):
        await anext(revisions)
        assert await store.commit({"/deepinfer/a": b"1"}) == await anext(revisions)
        with pytest.raises(StoreDenied):
            await store.read("/elsewhere/")


async def test_who_shows_no_certificate_or_trusts_another_authority_does_not_get_in(
    guarded: EtcdCluster, tmp_path: Path
) -> None:
    stranger = make_certificates(tmp_path / "stranger")
    config = fleet_config(guarded, tmp_path / "password")
    for changed in (
        {"cert_file": None, "key_file": None},
        {"ca_file": stranger.ca_file},
        {"cert_file": stranger.cert_file, "key_file": stranger.key_file},
    ):
        wrong = config.model_copy(update=changed)
        with pytest.raises(StoreUnavailable):
            async with EtcdStore.connect(wrong.endpoints, access=access_of(wrong), timeout=1):
                pass


async def test_fleets_in_namespaces_of_their_own_never_meet(etcd: str, store: EtcdStore) -> None:
    access = access_of(EtcdConfig(namespace="/team-a"))
    async with EtcdStore.connect([etcd], access=access) as ours, aclosing(ours.changes(ROOT)) as revisions:
        await anext(revisions)
        await store.commit({"/deepinfer/a": b"theirs", "/deepinfer/b": b"theirs"})
        reading = await ours.read(ROOT)
        assert reading.values == {}
        revision = await ours.commit({"/deepinfer/a": b"ours"}, if_unchanged=reading)
        assert await anext(revisions) == revision
        assert (await ours.read("")).values == {"/deepinfer/a": b"ours"}
        assert (await store.read("/team-a/deepinfer/")).values == {"/team-a/deepinfer/a": b"ours"}
        await ours.commit({"/deepinfer/a": None})
    assert (await store.read("")).values == {"/deepinfer/a": b"theirs", "/deepinfer/b": b"theirs"}


async def test_changes_and_conflicts_name_keys_as_their_user_knows_them(etcd: str, store: EtcdStore) -> None:
    async with Client([etcd], access=Access(namespace=b"/team-a")) as client, aclosing(client.watch(b"/x/")) as batches:
        await anext(batches)
        await store.commit({"/team-a/x/1": b"1"})
        assert [change.key for change in (await anext(batches)).changes] == [b"/x/1"]
        found = await client.get(b"/x/1")
        assert found is not None and found.key == b"/x/1"


@pytest.mark.parametrize(
    ("text", "host_port", "tls"),
    [
        ("10.0.0.1:2379", "10.0.0.1:2379", None),
        ("http://etcd-0:2379", "etcd-0:2379", False),
        ("https://etcd-0:2379/", "etcd-0:2379", True),
        ("[::1]:2379", "[::1]:2379", None),
    ],
)
def test_endpoints_are_addresses_or_urls(text: str, host_port: str, tls: bool | None) -> None:
    assert address_of(text) == (host_port, tls)


@pytest.mark.parametrize(
    "text", ["etcd", "", "etcd:", "etcd:0", "ftp://etcd:1", "://e:1", "e:99999", "e:1/keys", "e 1:2"]
)
def test_what_is_no_endpoint_is_named(text: str) -> None:
    with pytest.raises(InvalidConfig, match=re.escape(f'--etcd: "{text}" is no etcd endpoint; write HOST:PORT')):
        at_endpoints(EtcdConfig(), [text])


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('endpoints = ["https://root:secret@etcd:2379"]', "use username and password_file"),
        ('namespace = "team-a"', "write it like /team-a"),
        ('namespace = "/team-a/"', "write it like /team-a"),
        ('namespace = "/deepinfer/x"', "among another fleet's keys"),
        ('cert_file = "/c.pem"', "cert_file and key_file belong together"),
        ('username = "me"', "username and password_file belong together"),
        ('username = "me"\npassword = "x"', "etcd.password"),
        ('ca_file = "/ca.pem"', "the embedded etcd has no TLS"),
        ('endpoints = ["http://a:1"]\nca_file = "/ca.pem"', "http://a:1 is no TLS; write https://"),
    ],
)
def test_a_wrong_way_in_is_refused_with_the_next_step(tmp_path: Path, lines: str, told: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"[etcd]\n{lines}\n")
    with pytest.raises(InvalidConfig, match=re.escape(told)) as refused:
        load_config(file)
    assert "secret" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    with pytest.raises(InvalidConfig, match=f"{missing} cannot be read"):
        access_of(EtcdConfig(username="me", password_file=missing))


async def test_an_etcd_with_logins_on_this_machine_is_found_running(guarded_here: EtcdCluster, tmp_path: Path) -> None:
    """Who looks whether one runs does not log in."""
    port = guarded_here.members[0].client_port
    async with embedded_etcd(tmp_path / "etcd", port) as found:
        assert not found.started and found.endpoint == guarded_here.endpoints[0]
