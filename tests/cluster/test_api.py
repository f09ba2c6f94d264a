"""The way to the API server, and what is kept of its answers."""

import base64
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.api_server import ROOT, ApiServer, Served, serving
from virtlet.cluster.api import (
    FRESH,
    MOST_KEPT,
    MOST_KEPT_BYTES,
    Cluster,
    ObjectName,
)

MIB = 1 << 20


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path, ApiServer(namespaces={"shop"})) as server:
        yield server


@pytest.fixture
def api(served: Served) -> ApiServer:
    return served.api


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster(served: Served, clock: Clock) -> Iterator[Cluster]:
    made = Cluster(str(served.kubeconfig), clock)
    yield made
    made.close()


def secret(api: ApiServer, name: str, content: bytes) -> None:
    api.put("secrets", "shop", name, data={"key": base64.b64encode(content).decode()})


def read(cluster: Cluster, name: str) -> bytes:
    return cluster.read_key("shop", ObjectName("Secret", name, "key"))


def test_an_object_is_kept_for_a_moment(cluster: Cluster, api: ApiServer, clock: Clock) -> None:
    secret(api, "a", b"old")
    assert read(cluster, "a") == b"old"
    secret(api, "a", b"new")
    clock.now += FRESH - 0.1
    assert read(cluster, "a") == b"old"
    assert len(api.requests) == 1
    clock.now += 0.2
    assert read(cluster, "a") == b"new"
    # From when it was read, however often it is asked for.
    clock.now += FRESH - 0.1
    assert read(cluster, "a") == b"new"
    assert len(api.requests) == 2


def test_what_is_kept_is_bounded_in_number(cluster: Cluster, api: ApiServer) -> None:
    names = [f"s{number}" for number in range(MOST_KEPT + 1)]
    for name in names:
        secret(api, name, name.encode())
        read(cluster, name)
    api.requests.clear()
    for name in names[1:]:
        assert read(cluster, name) == name.encode()
    assert api.requests == []
    read(cluster, names[0])
    assert api.requests == ["/api/v1/namespaces/shop/secrets/s0"]


def test_what_is_kept_is_bounded_in_bytes(cluster: Cluster, api: ApiServer) -> None:
    names = [f"s{number}" for number in range(MOST_KEPT_BYTES // MIB + 1)]
    for name in names:
        secret(api, name, name.encode().ljust(MIB))
        read(cluster, name)
    api.requests.clear()
    for name in names[1:]:
        assert read(cluster, name).startswith(name.encode())
    assert api.requests == []
    read(cluster, names[0])
    assert len(api.requests) == 1


def test_an_object_beyond_all_bounds_is_read_and_not_kept(cluster: Cluster, api: ApiServer) -> None:
    secret(api, "small", b"small")
    secret(api, "large", bytes(MOST_KEPT_BYTES + 1))
    for _ in range(2):
        assert len(read(cluster, "large")) == MOST_KEPT_BYTES + 1
    assert len(api.requests) == 2
    assert read(cluster, "small") == read(cluster, "small") == b"small"
    assert len(api.requests) == 3


IN_A_POD = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
ln -s "$1" /run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"""
READER = """
import sys
from datetime import datetime, timedelta
from types import SimpleNamespace
from kubernetes.config import incluster_config
from virtlet.cluster.api import Cluster, ObjectName
from virtlet.errors import VirtletError

class Later(datetime):
    by = timedelta()

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + cls.by

incluster_config.datetime = SimpleNamespace(datetime=Later, timedelta=timedelta)
cluster = Cluster("")
for line in sys.stdin:
    name, minutes = line.split()
    Later.by = timedelta(minutes=int(minutes))
    try:
        answer = cluster.read_key("shop", ObjectName("Secret", name, "key")).decode()
    except VirtletError as error:
        answer = str(error)
    print(answer, flush=True)
"""
"""Reads what it is told to; the client looks at the token's file by the time of day."""


def test_in_a_pod_the_service_account_is_used_also_once_its_token_is_renewed(
    served: Served, api: ApiServer, tmp_path: Path
) -> None:
    account = tmp_path / "account"
    account.mkdir()
    (account / "ca.crt").write_bytes(served.authority.cert_pem.bytes())
    (account / "token").write_text(api.token)
    for name in ("first", "second", "third"):
        secret(api, name, name.encode())
    argv = ["unshare", "--mount", "sh", "-c", IN_A_POD, "sh", str(account), sys.executable]
    with subprocess.Popen(
        [*argv, "-c", READER],
        cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(served.port),
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as manager:
        assert manager.stdin
        assert manager.stdout

        def answer(question: str) -> str:
            assert manager.stdin
            assert manager.stdout
            manager.stdin.write(f"{question}\n")
            manager.stdin.flush()
            return manager.stdout.readline().strip()

        assert answer("first 0") == "first"
        # As a kubelet renews it.
        api.token = "of-the-next-hour"
        (account / "token").write_text(api.token)
        assert "does not know the manager's account (401)" in answer("second 0")
        assert answer("third 2") == "third"
        manager.stdin.close()
        assert manager.wait(30) == 0
