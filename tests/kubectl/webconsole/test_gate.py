"""Who gets anything of the console: the page that the user opened, and no other."""

import asyncio
import json
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.kubectl.webconsole.conftest import SECRET, served
from tests.polling import until_async
from virtlet.cli.ending import CommandFailed
from virtlet.kubectl.cluster import Kubectl
from virtlet.kubectl.ui import kubectl_proxy
from virtlet.kubectl.webconsole.api import KubectlProxy
from virtlet.kubectl.webconsole.assets import Assets
from virtlet.kubectl.webconsole.gate import START, OwnGate, Refused
from virtlet.kubectl.webconsole.server import Shown, WebConsole

PORT = 8111
POD = "/api/v1/namespaces/default/pods/vm"
SESSION = {"Upgrade": "websocket", "Connection": "Upgrade", "Origin": f"http://127.0.0.1:{PORT}"}


def _read(path: str, method: str = "GET", /, **headers: str) -> object:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"Host": f"127.0.0.1:{PORT}", "Cookie": f"virtlet-{PORT}={SECRET}"} | named
    lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in given.items() if v), "", ""]
    return OwnGate(PORT, SECRET).read("\r\n".join(lines).encode())


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/console.js", {"Sec_Fetch_Site": "same-origin"}),
        ("/api/v1/pods", {"Host": f"localhost:{PORT}"}),
        ("/api/v1/namespaces/default/events?fieldSelector=x", {}),
        ("/apis/metrics.k8s.io/v1beta1/namespaces/default/pods", {}),
        (f"{POD}/log?follow=true", {}),
        (f"{POD}/attach?stdin=true", SESSION),
        (f"{POD}/portforward?ports=5900", SESSION),
        (f"/?token={SECRET}", {"Cookie": ""}),
    ],
)
def test_what_the_consoles_page_asks_for_is_served(path: str, headers: dict[str, str]) -> None:
    _read(path, **headers)


@pytest.mark.parametrize(
    ("path", "headers", "why"),
    [
        ("/", {"Cookie": ""}, "open the address"),
        ("/", {"Cookie": f"virtlet-{PORT}=other"}, "open the address"),
        ("/", {"Cookie": f"virtlet-1={SECRET}"}, "open the address"),
        ("/?token=other", {"Cookie": ""}, "open the address"),
        (f"/console.js?token={SECRET}", {"Cookie": ""}, "open the address"),
        ("/", {"Host": f"evil.example:{PORT}"}, "no such name"),
        ("/", {"Host": "127.0.0.1"}, "no such name"),
        ("/", {"Origin": "http://evil.example"}, "another page"),
        ("/", {"Origin": "null"}, "another page"),
        ("/", {"Origin": f"http://127.0.0.1:{PORT + 1}"}, "another page"),
        ("/", {"Sec_Fetch_Site": "cross-site"}, "another page"),
        ("/", {"Sec_Fetch_Site": "same-site"}, "another page"),
        (f"{POD}/attach", {**SESSION, "Origin": ""}, "without an origin"),
        (f"{POD}/attach", {**SESSION, "Origin": "http://evil.example"}, "another page"),
        (f"{POD}/attach", {}, "sessions are WebSockets"),
        (f"{POD}/log", SESSION, "sessions are WebSockets"),
        ("/", SESSION, "no session"),
        (f"{POD}/portforward?ports=22", SESSION, "the screen alone"),
        (f"{POD}/portforward?ports=5900&ports=22", SESSION, "the screen alone"),
        (f"{POD}/exec?command=sh", SESSION, "does not ask"),
        ("/api/v1/namespaces/default/secrets", {}, "does not ask"),
        ("/apis/apps/v1/namespaces/default/deployments", {}, "does not ask"),
        ("/api/v1/namespaces/default/pods/../secrets", {}, "does not ask"),
        ("/api/v1/namespaces/default/pods/%2e%2e/log", {}, "does not ask"),
    ],
)
def test_all_else_is_refused(path: str, headers: dict[str, str], why: str) -> None:
    with pytest.raises(Refused, match=why):
        _read(path, **headers)


@pytest.mark.parametrize("method", ["POST", "DELETE", "PATCH", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("path", ["/api/v1/pods", "/", POD])
def test_nothing_is_changed(method: str, path: str) -> None:
    with pytest.raises(Refused, match="in another way"):
        _read(path, method)


def test_a_pod_is_started_by_the_page_alone() -> None:
    own = {"Origin": f"http://127.0.0.1:{PORT}"}
    assert _read(START, "POST", **own)
    for headers, why in (
        ({}, "without an origin"),
        ({"Origin": "http://evil.example"}, "another page"),
        ({**own, "Cookie": ""}, "open the address"),
    ):
        with pytest.raises(Refused, match=why):
            _read(START, "POST", **headers)
    with pytest.raises(Refused, match="in another way"):
        _read(START, "GET", **own)


async def _fetch(port: int, path: str, *extra: str, method: str = "GET", body: str = "") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += ["Authorization: Bearer browser", *extra, "", body]
    writer.write("\r\n".join(lines).encode())
    answer = await reader.read()
    writer.close()
    return answer


def _cookie(port: int) -> str:
    return f"Cookie: virtlet-{port}={SECRET}"


def test_answers_are_shown_by_no_other_page(tmp_path: Path) -> None:
    async def work() -> None:
        async with served(tmp_path) as console:
            port, cookie = console.port, _cookie(console.port)
            refused = await _fetch(port, f"{POD}/log")
            assert refused.startswith(b"HTTP/1.1 403 ")
            assert b"booting" not in refused
            log = await _fetch(port, f"{POD}/log", cookie)
            assert b"<b>booting</b>" in log
            assert b"Content-Security-Policy: sandbox" in log
            assert b"Cross-Origin-Resource-Policy: same-origin" in log
            page = await _fetch(port, "/", cookie)
            assert b"frame-ancestors 'none'" in page
            login = await _fetch(port, f"/?token={SECRET}")
            assert b"HttpOnly; SameSite=Strict" in login
            missing = await _fetch(port, "/novnc/../../etc/passwd", cookie)
            assert missing.startswith(b"HTTP/1.1 404 ")

    asyncio.run(work())


async def _heard(directory: Path, path: str, answer: bytes, *headers: str) -> list[bytes]:
    """What an API server hears of a request that brings another in the same piece."""
    heard = [b"", b""]
    ended = asyncio.Event()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard[0] = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer + b"\r\n\r\n")
        heard[1] = await reader.read()
        ended.set()
        writer.close()

    api = await asyncio.start_unix_server(hear, directory / "api")
    gate = partial(OwnGate, secret=SECRET)
    api_there = KubectlProxy(directory / "api")
    console = WebConsole(api_there, Shown("default", ()), gate, Assets.find())
    port = int((await console.start()).split(":")[2].split("/")[0])
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        given = [f"Host: 127.0.0.1:{port}", _cookie(port), *headers]
        given.append(f"Origin: http://127.0.0.1:{port}")
        writer.write("\r\n".join([f"GET {path} HTTP/1.1", *given, "", ""]).encode() + BEYOND)
        # A page sees no answer to a WebSocket's request but one: why there is none is said in one.
        status = b"HTTP/1.1 101 " if headers else answer.split(b"\r\n")[0]
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(status)
        writer.write_eof()
        await asyncio.wait_for(ended.wait(), 60)
        writer.close()
    finally:
        await console.stop()
        api.close()
    return heard


BEYOND = b"POST /api/v1/namespaces/default/pods HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")


@pytest.mark.parametrize(
    ("path", "answer", "headers", "passed_on"),
    [
        ("/api/v1/pods", b"HTTP/1.1 200 OK", (), b""),
        (f"{POD}/attach", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0", UPGRADE, b""),
        (f"{POD}/attach", b"HTTP/1.1 200 OK\r\nContent-Length: 0", UPGRADE, b""),
        (f"{POD}/attach", b"HTTP/1.1 500 No\r\nContent-Length: -", UPGRADE, b""),
        ("/api/v1/pods", b"HTTP/1.1 101 Switching Protocols", (), b""),
        (f"{POD}/attach", b"HTTP/1.1 101 Switching Protocols", UPGRADE, BEYOND),
    ],
)
def test_nothing_but_a_begun_session_goes_past_the_gate(
    tmp_path: Path, path: str, answer: bytes, headers: tuple[str, ...], passed_on: bytes
) -> None:
    first, then = asyncio.run(_heard(tmp_path, path, answer, *headers))
    assert first.startswith(f"GET {path} ".encode())
    assert then == passed_on


POD_YAML = """\
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  runtimeClassName: virtlet
  containers: [{name: vm, image: virtlet.cloud/tiny}]
"""


@pytest.mark.parametrize(
    ("manifest", "status", "why"),
    [
        (POD_YAML.replace("NAME", "new"), 201, '"name": "new"'),
        (POD_YAML.replace("NAME", "vm"), 409, "already exists"),
        (POD_YAML.replace("NAME", "new, namespace: a/b"), 422, "no name of a namespace"),
        (POD_YAML.replace("NAME", "new, annotations: {VirtletNo: x}"), 422, "VirtletNo"),
        (POD_YAML + "---\n" + POD_YAML, 422, "one object of kind Pod"),
        (POD_YAML + "---\nany text\n", 422, "one object of kind Pod"),
        ("any text\n---\n" + POD_YAML, 422, "one object of kind Pod"),
        (f"kind: List\nitems: [{json.dumps(yaml.safe_load(POD_YAML))}]", 422, "kind Pod"),
        (POD_YAML.replace("name: NAME", ""), 422, "metadata.name is empty"),
        ("kind: Secret", 422, "one object of kind Pod"),
        ("a: [", 422, "the manifest"),
        ("", 413, "bytes at most"),
    ],
)
def test_a_manifest_is_looked_at_before_it_is_sent(
    tmp_path: Path, manifest: str, status: int, why: str
) -> None:
    async def work() -> None:
        async with served(tmp_path) as console:
            origin = f"Origin: http://127.0.0.1:{console.port}"
            said = (_cookie(console.port), origin, f"Content-Length: {len(manifest)}")
            answer = await _fetch(console.port, START, *said, method="POST", body=manifest)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode())
            assert why in answer.decode()
            assert len(console.api.created) == (status == 201)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("length", "why"), [("2000000", "bytes at most"), ("-1", "no HTTP"), ("x", "no HTTP")]
)
def test_a_manifest_has_a_length(tmp_path: Path, length: str, why: str) -> None:
    async def work() -> None:
        async with served(tmp_path) as console:
            origin = f"Origin: http://127.0.0.1:{console.port}"
            said = (_cookie(console.port), origin, f"Content-Length: {length}")
            answer = await _fetch(console.port, START, *said, method="POST")
            assert why in answer.decode()

    asyncio.run(work())


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 0), (signal.SIGHUP, 0), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda n: getattr(n, "name", ""),
)
def test_what_ends_the_console_leaves_no_port_and_no_way_to_the_api_server(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = ["-m", "virtlet.kubectl.main", "ui", "--no-browser", "--namespace=default"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "KUBECONFIG": "/dev/null"}

    async def work() -> None:
        async with served(tmp_path) as other:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *words, f"--server={other.api.url}"),
                env=environment,
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout
            port, _, secret = (await process.stdout.readline()).decode()[17:].partition("/?token=")
            (directory,) = tmp_path.glob("virtlet-*")
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            cookie = f"Cookie: virtlet-{port}={secret.strip()}"
            head = f"GET {POD}/log?follow=true HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{cookie}\r\n"
            writer.write(f"{head}\r\n".encode())
            assert b"booting" in await reader.readuntil(b"booting")
            process.send_signal(number)
            assert await process.wait() == code
            assert b"booting" not in await reader.read()
            writer.close()
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", int(port))
            await until_async(lambda: not _listens(directory / "api"), "the end of kubectl proxy")
            assert number == signal.SIGKILL or not directory.exists()

    asyncio.run(work())


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(path)) == 0


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def start(*options: str) -> None:
        async with kubectl_proxy(Kubectl(options, "default")):
            raise AssertionError("it serves")

    with pytest.raises(CommandFailed, match="kubectl proxy: .*nowhere"):
        asyncio.run(start("--kubeconfig=/nowhere/at/all"))
    with pytest.raises(CommandFailed, match="install Debian's package novnc"):
        Assets.find(novnc=tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CommandFailed, match="kubectl is not there"):
        asyncio.run(start())
