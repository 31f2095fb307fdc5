"""What is etcd's own: several members, TLS, users. What every store does is in test_ipam_store."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from config.store import Store as Settings
from ipam.errors import StoreDeniedError, StoreError, StoreUnavailableError
from ipam.etcd_gateway import Gateway
from ipam.etcd_store import EtcdStore
from ipam.store import Changes, Put, Range, Unchanged
from tests.etcd import CLIENT_PORT, Etcd, etcd, needs_etcd

pytestmark = needs_etcd
ALL = Range.below("/t/")


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[EtcdStore]:
    store = EtcdStore.of(settings)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def impatient(cluster: Etcd, first: int) -> AsyncIterator[EtcdStore]:
    """Yield a store that begins with one certain member, and waits a second for it."""
    endpoints = [(host, CLIENT_PORT) for host in cluster.hosts]
    store = EtcdStore(Gateway(cluster.url, endpoints, timeout=1.0, first=first))
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def write(store: EtcdStore, key: str) -> int:
    """Write a record, however often it takes, and return its revision."""
    async with asyncio.timeout(30):
        while True:
            with suppress(StoreUnavailableError):  # of what is written, or of what is read
                await store.transact([Unchanged(key, 0)], [Put(key, b"")])
                if entry := await store.get(key):
                    return entry.modified


async def seen(watch: AsyncIterator[Changes], key: str) -> None:
    async with asyncio.timeout(30):
        async for changes in watch:
            if any(change.key == key for change in changes.changes):
                return


@pytest.fixture
def three() -> Iterator[Etcd]:
    with etcd(3) as cluster:
        yield cluster


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_the_loss_of_the_leader_that_one_talks_to(three: Etcd, how: signal.Signals) -> None:
    leader = three.leader()
    async with impatient(three, leader) as store, aclosing(store.watch(ALL, await write(store, "/t/first"))) as watch:
        before = asyncio.create_task(seen(watch, "/t/before"))
        await write(store, "/t/before")
        await before
        after = asyncio.create_task(seen(watch, "/t/after"))
        three.signal(leader, how)
        await write(store, "/t/after")
        await after
        assert {entry.key for entry in (await store.list(ALL)).entries} == {"/t/first", "/t/before", "/t/after"}


async def test_without_a_majority_nothing_is_written_and_the_reason_names_each_member(three: Etcd) -> None:
    async with impatient(three, 0) as store:
        await write(store, "/t/a")
        three.kill(1)
        three.kill(2)
        with pytest.raises(StoreUnavailableError) as caught:
            await store.list(ALL)
        for host in three.hosts:
            assert f"{host}:{CLIENT_PORT}: " in str(caught.value)
        three.start_member(1)
        assert await write(store, "/t/b")


async def test_nobody_there() -> None:
    async with opened(Settings(url="etcd://127.0.0.1:1,127.0.0.1:2")) as store:
        with pytest.raises(StoreUnavailableError, match=r"store etcd://127.0.0.1:1,127.0.0.1:2 does not answer \(127"):
            await store.list(ALL)


def openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def certificate(directory: Path, name: str, host: str) -> None:
    """Make NAME.key and NAME.pem, signed by ca.pem."""
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(directory, "req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
    (directory / f"{name}.ext").write_text(f"subjectAltName=IP:{host}\nextendedKeyUsage=serverAuth,clientAuth\n")
    signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
    openssl(directory, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")


async def test_tls_with_certificates_on_both_sides(tmp_path: Path) -> None:
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(tmp_path, "req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    files = {name: str(tmp_path / name) for name in ("ca.pem", "server.pem", "server.key", "client.pem", "client.key")}
    cluster = Etcd(
        scheme="https",
        arguments=[
            *("--cert-file", files["server.pem"], "--key-file", files["server.key"]),
            *("--trusted-ca-file", files["ca.pem"], "--client-cert-auth"),
        ],
    )
    certificate(tmp_path, "server", cluster.hosts[0])
    certificate(tmp_path, "client", "127.0.0.1")
    ours = {"ca": files["ca.pem"], "certificate": files["client.pem"], "key": files["client.key"]}
    try:
        cluster.start_member(0)
        async with opened(Settings.model_validate({"url": cluster.url, **ours})) as store:
            await write(store, "/t/a")
        async with opened(Settings(url=cluster.url, tls=True)) as stranger:
            with pytest.raises(StoreUnavailableError, match="its certificate is not trusted"):
                await stranger.list(ALL)
        async with opened(Settings(url=cluster.url, ca=files["ca.pem"])) as nobody:
            with pytest.raises(StoreUnavailableError):
                await nobody.list(ALL)
        async with opened(Settings(url=cluster.url)) as plain:
            with pytest.raises((StoreUnavailableError, StoreError)):
                await plain.list(ALL)
    finally:
        cluster.close()


def test_files_that_are_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(StoreError, match=r"store etcd://e1: .*ca.pem cannot be used for TLS"):
        EtcdStore.of(Settings(url="etcd://e1", ca=str(tmp_path / "ca.pem")))


def secure(cluster: Etcd) -> None:
    """Have the cluster know root, and user pod, who may use what is below /t/."""
    for words in (
        ("user", "add", "root:secret"),
        ("user", "add", "pod:hunter2"),
        ("role", "add", "podroute"),
        ("role", "grant-permission", "podroute", "readwrite", "--prefix=true", "/t/"),
        ("user", "grant-role", "pod", "podroute"),
        ("auth", "enable"),
    ):
        cluster.etcdctl(*words)


def jwt(directory: Path) -> str:
    """Return what has etcd give JWTs."""
    private, public = directory / "key.pem", directory / "public.pem"
    for words in (("genrsa", "-out", private), ("rsa", "-in", private, "-pubout", "-out", public)):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    return f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"


async def test_a_token_that_users_or_roles_have_made_old_is_replaced(tmp_path: Path) -> None:
    """As etcd has it with tokens that are JWTs: each says as of when it is."""
    cluster = Etcd(arguments=["--auth-token", jwt(tmp_path)])
    try:
        cluster.start()
        secure(cluster)
        (tmp_path / "pw").write_text("hunter2")
        (tmp_path / "pw").chmod(0o600)
        settings = {"url": cluster.url, "user": "pod", "passwordFile": str(tmp_path / "pw")}
        async with opened(Settings.model_validate(settings)) as store:
            await write(store, "/t/a")
            cluster.etcdctl("role", "add", "another", arguments=["--user", "root:secret"])
            await write(store, "/t/b")
            assert await store.get("/t/a") is not None
    finally:
        cluster.close()


async def test_a_token_that_is_refused_at_once_is_a_failure_of_that_member() -> None:
    async def refuse(request: web.Request) -> web.Response:
        if request.path.endswith("/authenticate"):
            return web.json_response({"token": "t"})
        return web.json_response({"error": "etcdserver: invalid auth token", "code": 16}, status=401)

    app = web.Application()
    app.router.add_post("/v3/{path:.*}", refuse)
    async with TestServer(app) as server:
        assert server.port is not None
        gateway = Gateway("etcd://e1", [("127.0.0.1", server.port)], user="pod", password="secret")
        gateway.open()
        with pytest.raises(StoreUnavailableError, match="refuses the token that it has just given"):
            await gateway.call("/kv/range", {}, repeatable=True)
        await gateway.close()


async def test_users_and_passwords(tmp_path: Path) -> None:
    def password(text: str) -> str:
        path = tmp_path / text
        path.write_text(text + "\n")
        path.chmod(0o600)
        return str(path)

    with etcd() as cluster:

        def settings(user: str, secret: str) -> Settings:
            return Settings.model_validate({"url": cluster.url, "user": user, "passwordFile": password(secret)})

        async with opened(settings("pod", "hunter2")) as store:
            with pytest.raises(StoreDeniedError, match=r"\): turn it on .* or leave user and passwordFile out$"):
                await store.list(ALL)
        secure(cluster)
        async with opened(settings("pod", "hunter2")) as store:
            made = await store.transact([], [Put("/t/a", b"1")])
            async with aclosing(store.watch(ALL, made.revision)) as watch:
                waiting = asyncio.create_task(seen(watch, "/t/b"))
                await store.transact([], [Put("/t/b", b"1", await store.grant(60))])
                await waiting
            # Its tokens are gone when a member has been started anew
            cluster.kill(0)
            cluster.start_member(0)
            await write(store, "/t/c")
            with pytest.raises(StoreDeniedError, match="as user pod"):
                await store.get("/other")
        async with opened(settings("pod", "wrong")) as store:
            with pytest.raises(StoreDeniedError, match="set user and passwordFile"):
                await store.get("/t/a")
        async with opened(Settings(url=cluster.url)) as store:
            with pytest.raises(StoreDeniedError, match="without a user"):
                await store.get("/t/a")
