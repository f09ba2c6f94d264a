"""What is fuzzed: each target takes any bytes, and raises only where the code is wrong.

A target lets the errors pass that its code promises, and checks what has to hold of what was read.
"""

import asyncio
import contextlib
import io
import json
import os
import re
import socket
import tarfile
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

from attrs import evolve
from google.protobuf.message import DecodeError

from criproxy.http2.endpoints import ClientConnection, ServerConnection
from criproxy.http2.frames import Header
from criproxy.http2.stream import Outbox, Sink, Stream
from tests.console.support import console_files as files_of
from tests.console.support import log_of, rotate
from tests.console.support import printed as printed_in
from tests.fakes.model import make_pod, make_vm_config
from tests.plugins.domain_xml.test_render import FIRMWARE, plain
from virtlet.console.console_files import ConsoleFiles, make_console
from virtlet.console.cri_log import decode, encode
from virtlet.console.follower import Follower
from virtlet.core.checkpoint_archive import ARCHIVE, HEADER, ROOM, START
from virtlet.core.cri import requests
from virtlet.core.read_checkpoint import open_checkpoint
from virtlet.cri import api_pb2 as cri
from virtlet.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VirtletError,
)
from virtlet.host.qcow2 import parse_header
from virtlet.image_servers.pace import Bounds
from virtlet.image_servers.reach import Reach
from virtlet.images.layout import link_name
from virtlet.launch.server import parse_request
from virtlet.model.bounded_yaml import MOST_VALUES, load_yaml
from virtlet.model.image import Credentials, ImageSource
from virtlet.model.network import Network, Nic
from virtlet.model.plain import UnquotedError
from virtlet.model.reference import parse_reference
from virtlet.plugins.domain_xml.render import Renderer
from virtlet.plugins.flavors.choose import choose
from virtlet.plugins.flavors.cpu import parse_cpu
from virtlet.plugins.guest_agent.answers import Answer, Nonsense, ReplyBudget, data_of
from virtlet.plugins.image_formats.plugin import identify, recognise
from virtlet.plugins.image_http.download import download
from virtlet.plugins.image_oci.layers import Archive, Budget, Damaged, TooMuch, unpacked
from virtlet.plugins.image_oci.manifests import INDEXES, MANIFESTS, Malformed, Manifest, diff_ids
from virtlet.plugins.image_oci.manifests import choose as choose_manifest
from virtlet.plugins.image_oci.manifests import parse as parse_manifest
from virtlet.plugins.network_cni.bridging import BridgedNic
from virtlet.plugins.network_cni.cni_result import parse
from virtlet.plugins.network_cni.dhcp import configuration
from virtlet.plugins.network_cni.frame_filter import rules
from virtlet.streaming.handlers import ProtocolError, StreamClosed
from virtlet.streaming.spdy_frames import FrameDecoder
from virtlet.streaming.websocket import TunnelWire, WebSocket
from vmwrapper.__main__ import unpack

_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where files of an input are: not on a disk."""


def agent_answer(data: bytes) -> None:
    """An answer of a guest's agent, in parts of a length that the first byte says."""
    size = 16 * data[0] + 1 if data else 1
    answer = Answer(1 << 20, ReplyBudget(1 << 20))
    try:
        for at in range(1, len(data), size):
            answer.feed(data[at : at + size])
        returned = answer.document().get("return")
    except (Nonsense, ResourceExhausted):
        return
    for value in returned.values() if isinstance(returned, dict) else [returned]:
        try:
            assert isinstance(data_of(value, "x").whole(), bytes)
        except Unavailable:
            continue


def yaml_text(data: bytes) -> None:
    """A document of an annotation, which becomes plain data or is refused."""
    try:
        value = load_yaml(data.decode(errors="replace"))
    except UnquotedError:
        return
    text = json.dumps(value, allow_nan=False)
    assert len(text) < 6 * (2 << 20) + 8 * MOST_VALUES


def cpu_setting(data: bytes) -> None:
    """A CPU setting, which becomes an element of a known form or is refused."""
    try:
        cpu = parse_cpu(data.decode(errors="replace"))
    except ValueError:
        return
    if cpu is not None:
        assert ElementTree.fromstring(cpu.xml).tag == "cpu"


_FORM: set[str] = set()


def pod_domain(data: bytes) -> None:
    """A pod's annotations, of which none brings an element of its own into the document."""
    names = (
        "VirtletLibvirtCPUSetting",
        "VirtletCPUModel",
        "VirtletVCPUCount",
        "VirtletMaxVCPUCount",
        "VirtletMaxMemory",
        "VirtletSystemUUID",
        "VirtletDiskDriver",
    )
    texts = data.decode(errors="replace").split("\0")
    marks = {name: text for name, text in zip(names, texts, strict=False) if text}
    pod = make_pod(marks)
    machine = plain()
    accelerator = "kvm" if len(data) % 2 else "qemu"
    try:
        flavor = choose(pod, make_vm_config(0))
        document = _renderer().render(evolve(machine, accelerator=accelerator, flavor=flavor))
    except VirtletError:
        return
    known = _FORM or _known_elements()
    assert {element.tag for element in document.iter()} <= known
    [memory] = document.findall("memory")
    cells = document.findall("cpu/numa/cell")
    assert flavor.nested or not any(
        feature.get("name") in ("vmx", "svm") and feature.get("policy") != "disable"
        for feature in document.findall("cpu/feature")
    )
    assert len(cells) <= max(flavor.max_vcpus, flavor.vcpus, 1) * 4000
    assert int(memory.text or "") >= flavor.memory


@lru_cache(maxsize=1)
def _renderer() -> Renderer:
    return Renderer(64055, 64055, "", lambda: FIRMWARE)


def _known_elements() -> set[str]:
    golden = Path(__file__).parents[1] / "golden"
    for path in golden.glob("domain-*.xml"):
        _FORM.update(element.tag for element in ElementTree.parse(path).iter())
    _FORM.update(("cpu", "model", "vendor", "topology", "cache", "maxphysaddr"))
    _FORM.update(("feature", "numa", "cell", "vcpus", "vcpu"))
    return _FORM


def console_log(data: bytes) -> None:
    """What a guest prints, which is in the log what it was; and a log that others wrote."""
    encoded = encode(data, 1_700_000_000_123_456_789, flush=bool(len(data) % 2))
    decoded = decode(encoded.text)
    assert decoded.payload == data[: encoded.taken]
    assert decoded.lost == 0
    try:
        decode(data)
    except ValueError:
        return


_MOST_STEPS = 64


def console_files(data: bytes) -> None:
    """A console's files: what a guest printed is in the logs once, whatever was killed or rotated.

    An emulator that was taken over, and others who write there, bring the log writer to nothing but
    an error of the operating system.
    """
    hostile = data[:1] > b"\x7f"
    with tempfile.TemporaryDirectory(prefix="virtlet-fuzz-", dir=_MEMORY) as place:
        files = files_of(Path(place))
        make_console(files)
        follower, output, at = Follower(files), b"", 1
        try:
            follower.open()
            for _ in range(_MOST_STEPS):
                step, size = data[at : at + 1], int.from_bytes(data[at + 1 : at + 2])
                chunk = data[at + 2 : at + 2 + size]
                at += 2 + size
                match int.from_bytes(step) % 8:
                    case 0 | 1 | 2 as kind:
                        printed = chunk * (1, 4, 200)[kind]
                        with files.raw.open("ab") as raw:
                            raw.write(printed)
                        output += printed
                    case 3:
                        follower.step()
                    case 4:
                        follower.step(flush=True)
                    case 5:  # what a kill leaves is not closed, but the lock goes
                        follower.close()
                        follower = Follower(files)
                        follower.open()
                    case 6 if log_of(files).exists():
                        rotate(files)
                        follower.reopen()
                    case 7 if hostile:
                        _spoil(files, chunk)
            follower.finish()
        except OSError:
            assert hostile
            return
        finally:
            follower.close()
        assert hostile or printed_in(files) == output


def _spoil(files: ConsoleFiles, chunk: bytes) -> None:
    """Do what no emulator and no kubelet does."""
    kind, rest = chunk[:1], chunk[1:]
    number = int.from_bytes(rest[:4])
    match int.from_bytes(kind) % 4:
        case 0 | 1 as shrink:
            size = files.raw.stat().st_size
            os.truncate(files.raw, size // 2 if shrink else size + number % (1 << 26))
        case 2:
            with log_of(files).open("ab") as log:
                log.write(rest)
        case _:
            with files.state.open("r+b") as state:
                state.seek(number % 256)
                state.write(rest[4:])


def spdy(data: bytes) -> None:
    """SPDY frames of a streaming client."""
    decoder = FrameDecoder()
    try:
        for at in range(0, len(data), 61):
            for _ in decoder.feed(data[at : at + 61]):
                pass
    except ProtocolError:
        return


class _Sent:
    """A client that sends pieces, and hangs up."""

    def __init__(self, data: bytes) -> None:
        self._pieces = [data[at : at + 61] for at in range(0, len(data), 61)]

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    async def write(self, data: bytes) -> None:
        return None

    def probe(self, nothing: bytes) -> None:
        return None


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run what waits for nothing but `_Sent`."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something else")


def websocket(data: bytes) -> None:
    """WebSocket frames of a streaming client, and SPDY within them."""

    async def read() -> None:
        tunnel, decoder = TunnelWire(WebSocket(_Sent(data))), FrameDecoder()
        try:
            while piece := await tunnel.read():
                for _ in decoder.feed(piece):
                    pass
        except (ProtocolError, StreamClosed):
            return

    _run(read())


class _Transport:
    """Takes what a connection sends."""

    closing = False

    def write(self, data: bytes) -> None:
        return None

    writelines = write

    def close(self) -> None:
        self.closing = True

    abort = close

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        return None

    resume_reading = pause_reading

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0


def _http2(data: bytes, *, server: bool) -> None:
    async def serve() -> None:
        outbox = Outbox()
        connection: ClientConnection | ServerConnection
        if server:
            connection = ServerConnection(outbox, _answered, lambda connection: None)
        else:
            connection = ClientConnection(outbox, lambda reason: None)
        transport = cast(asyncio.Transport, _Transport())
        connection.connection_made(transport)
        if isinstance(connection, ClientConnection):
            connection.open([(b":method", b"POST"), (b":path", b"/x")], Sink())
        for at in range(0, len(data), 113):
            if transport.is_closing():
                break
            connection.data_received(data[at : at + 113])
            await asyncio.sleep(0)
        connection.connection_lost(None)
        for left in (connection.settled, connection.closed):
            if left.done() and not left.cancelled():
                left.exception()

    _LOOP.run_until_complete(serve())


def _answered(stream: Stream, headers: list[Header], ended: bool) -> None:
    stream.send_headers([(b":status", b"200"), (b"grpc-status", b"12")], ended=True)


_LOOP = asyncio.new_event_loop()


def http2_server(data: bytes) -> None:
    """HTTP/2 of a client of the proxy, after its preface."""
    _http2(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data, server=True)


def http2_client(data: bytes) -> None:
    """HTTP/2 of a runtime behind the proxy."""
    _http2(data, server=False)


_LINE = re.compile(r"[a-z0-9-]+(=[^\n\r]*)?")
_ADDRESS = re.compile(r"[0-9a-f:.]+")


def cni_result(data: bytes) -> None:
    """A CNI result, up to the texts that dnsmasq and nft read."""
    try:
        result = parse(json.loads(data), "1.0.0")
    except (ValueError, RecursionError):
        return
    nic = Nic(
        name="eth0",
        mac="02:00:00:00:00:01",
        mtu=1500,
        addresses=tuple(str(found.address) for found in result.addresses),
        routes=result.routes,
    )
    guests = tuple(str(ip_interface(address).ip) for address in nic.addresses)
    bridged = BridgedNic(0, "eth0", nic.mac, 1500, (), (), guests, (), "169.254.77.1", nic.mac)
    # What nft reads of them has no character that ends a value.
    rules([bridged], spoofing=False)
    assert all(map(_ADDRESS.fullmatch, guests))
    try:
        text = configuration("box", Network(netns=None, nics=(nic,), dns=result.dns), [bridged])
    except InvalidArgument:
        return
    for line in text.splitlines():
        assert _LINE.fullmatch(line), line
        assert not line.startswith(("dhcp-script", "conf-", "addn-hosts", "log-")), line


def _check_line(error: VirtletError) -> None:
    """A message is one line for people."""
    assert str(error).isprintable()
    assert len(str(error)) < 1000


def cri_request(data: bytes) -> None:
    """A pod or container of a CRI client, which is taken or refused in one line."""
    pod, container = cri.PodSandboxConfig(), cri.ContainerConfig()
    try:
        if data[:1] < b"\x80":
            pod.ParseFromString(data[1:])
            requests.pod_config(pod)
        else:
            container.ParseFromString(data[1:])
            requests.vm_config(container)
    except DecodeError:
        return
    except (InvalidArgument, Unimplemented) as error:
        _check_line(error)


def image_name(data: bytes) -> None:
    """The name of an image, which is a file name in the store."""
    try:
        reference = parse_reference(data.decode(errors="replace"))
    except InvalidArgument as error:
        _check_line(error)
        return
    name = link_name(reference)
    assert "/" not in name
    assert "\0" not in name
    assert name not in ("", ".", "..")
    assert len(os.fsencode(name)) <= 255


def launch_wire(data: bytes) -> None:
    """What a wrapper asks of the manager, and an answer that the wrapper reads."""
    with contextlib.suppress(ValueError):
        parse_request(data)
    with contextlib.suppress(ValueError, KeyError):
        unpack(data, [], {})


def image(data: bytes) -> None:
    """The first bytes of an image, and what it is taken for."""
    identify(io.BytesIO(data), len(data))
    try:
        parse_header("x", b"QFI\xfb" + data).check("x")
    except InvalidArgument:
        return


def image_file(data: bytes) -> None:
    """A disk image, which qemu-img looks at too."""
    with tempfile.TemporaryDirectory(prefix="virtlet-fuzz-", dir=_MEMORY) as place:
        file = Path(place) / "image"
        file.write_bytes(data)
        with contextlib.suppress(InvalidArgument, Unavailable):
            found = recognise(file, "x")
            assert found.format in ("raw", "qcow2")
            assert found.virtual_size > 0


def _header_of(words: bytes) -> bytes:
    """A member's header: name, kind and size in words, or its bytes as they are."""
    if words[:1] == b"!":
        return words[1 : HEADER + 1]
    name, kind, size = [*words.decode(errors="replace").split(" "), "", "", ""][:3]
    member = tarfile.TarInfo(name[:90])
    member.type = kind[:1].encode("latin-1", "replace") or tarfile.REGTYPE
    with contextlib.suppress(ValueError):
        member.size = int(size[:15])
    try:
        return member.tobuf(tarfile.GNU_FORMAT)[:HEADER]
    except ValueError:
        return b""


def checkpoint(data: bytes) -> None:
    """A checkpoint's archive: lines for its length and headers, a disk's first bytes, JSON."""
    length, first, memory, disk, rest = [*data.split(b"\n", 4), b"", b"", b"", b"", b""][:5]
    held = memory.rpartition(b" ")[2]
    disk_at = START + (int(held[:9]) if re.fullmatch(rb"[0-9]+", held) else 8192)
    with tempfile.TemporaryDirectory(prefix="virtlet-fuzz-", dir=_MEMORY) as place:
        with (Path(place) / ARCHIVE).open("wb") as file:
            for at, part in (
                (0, _header_of(first)),
                (HEADER, rest[104:].ljust(ROOM)[:ROOM]),
                (START - HEADER, _header_of(memory)),
                (disk_at, _header_of(disk)),
                (disk_at + HEADER, rest[:104]),
            ):
                os.pwrite(file.fileno(), part, at)
            if re.fullmatch(rb"[0-9]{1,9}", length):
                os.truncate(file.fileno(), int(length))
            end = os.fstat(file.fileno()).st_size
        try:
            with open_checkpoint(Path(place)) as saved:
                assert saved.memory.offset == START
                assert 0 < saved.memory.size <= saved.disk.offset - START
                assert 0 <= saved.disk.size <= end - saved.disk.offset
                assert all(int(mac[:2], 16) % 2 == 0 and len(mac) == 17 for mac in saved.macs)
                assert all(0 < len(text) <= 4096 for text in (saved.container, saved.image_id))
                assert not saved.disk_header().backing_file
        except (InvalidArgument, FailedPrecondition) as error:
            _check_line(error)


_MOST_UNPACKED = 8 << 20


def oci_layer(data: bytes) -> None:
    """A layer of an image in a registry, packed or not."""

    def some() -> Iterator[bytes]:
        left = _MOST_UNPACKED
        for piece in unpacked(data[at : at + 997] for at in range(0, len(data), 997)):
            left -= len(piece)
            if left < 0:
                raise TooMuch("it is more than an input may unpack to")
            yield piece

    archive = Archive(some(), Budget())
    with contextlib.suppress(Damaged, TooMuch):
        if not archive.starts():
            return
        for entry in archive.entries():
            assert entry.path == os.path.normpath(entry.path)
            assert entry.path.startswith("/")
            assert entry.size >= 0
            if entry.is_file:
                assert sum(map(len, archive.content(entry))) == entry.size


def oci_manifest(data: bytes) -> None:
    """A manifest, index or configuration of such an image."""
    kinds = (*sorted(MANIFESTS), *sorted(INDEXES), "text/plain")
    kind, content = kinds[int.from_bytes(data[:1]) % len(kinds)], data[1:]
    try:
        found = parse_manifest(content, kind)
        if not isinstance(found, Manifest):
            choose_manifest(found, "linux/amd64")
        diff_ids(content, 1)
    except Malformed as error:
        _check_line(error)


class _Answering:
    """A server that answers every request with the same bytes, and hangs up."""

    def __init__(self) -> None:
        self.answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, name="answering", daemon=True).start()

    def _serve(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            with peer, contextlib.suppress(OSError):
                peer.settimeout(5)
                while b"\r\n\r\n" not in peer.recv(1 << 16):
                    pass
                peer.sendall(self.answer)


class _Thrown:
    """A staging file that takes a mebibyte, and keeps nothing."""

    size = 0
    validator = ""
    complete = False

    def begin(self, validator: str, offset: int, total: int | None) -> None:
        self.size = offset

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size > 1 << 20:
            raise ResourceExhausted("larger than the limit")

    def at_end(self, close: Callable[[], None]) -> None:
        return None


@lru_cache(maxsize=1)
def _server() -> _Answering:
    return _Answering()


_HOST = re.compile(rb"//(?:[^/?#\s]*@)?([^/?#\s]*)")
_LOOPBACK = ip_network("127.0.0.0/8")
_OURS = re.compile(rb"(127\.0\.0\.1|[0-9.]*\.\.[0-9.]*)(:PORT)?")
"""The server, and what is no host name: nothing else is looked up or connected to."""


def http_answer(data: bytes) -> None:
    """What an image's server answers, also to the request that a redirect leads to."""
    if not all(map(_OURS.fullmatch, _HOST.findall(data))):
        return
    server = _server()
    server.answer = data.replace(b"PORT", str(server.port).encode())
    source = ImageSource(name="x", url=f"http://127.0.0.1:{server.port}/x")
    with contextlib.suppress(VirtletError):
        download(source, Credentials(), _Thrown(), Bounds(reach=Reach((_LOOPBACK,))))


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        agent_answer,
        yaml_text,
        cpu_setting,
        pod_domain,
        console_log,
        console_files,
        spdy,
        websocket,
        http2_server,
        http2_client,
        cni_result,
        cri_request,
        image_name,
        launch_wire,
        image,
        image_file,
        checkpoint,
        oci_layer,
        oci_manifest,
        http_answer,
    )
}
LONGEST_STEP = 0.05
"""Seconds of CPU that any input of the corpus may take."""
CORPUS = Path(os.environ.get("VIRTLET_FUZZ_CORPUS", Path(__file__).parent / "corpus"))
