"""Configuration: the file, the options, what is refused."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest
from attrs import evolve

from criproxy.config import Config, ConfigError, Dial, Limits, RuntimeConfig, cannot_listen, check
from criproxy.config_file import build, parse_connect, read_file

FULL = """
listen: /run/criproxy/criproxy.sock
http: 127.0.0.1:10009
stream_listen: "[::1]:10011"
state_dir: null
socket_mode: "0600"
grace: 5m
runtimes:
  - name: containerd
    socket: unix:///run/containerd/containerd.sock
  - name: virtlet.cloud
    socket: /run/virtlet.sock
    handlers: [virtlet, kvm]
    grace: forever
    stream_url: http://127.0.0.1:10010/
    dial: {timeout: 2s, first_wait: 50ms, longest_wait: 1}
    limits: {read_seconds: 3s, call_seconds: 2h, calls: 100, message_bytes: 1000}
"""


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "criproxy.yaml"
    path.write_text(text)
    return build(read_file(str(path)))


def test_every_key_is_understood(tmp_path: Path) -> None:
    assert load(tmp_path, FULL) == Config(
        listen="/run/criproxy/criproxy.sock",
        http=("127.0.0.1", 10009),
        stream_listen=("::1", 10011),
        state_dir=None,
        socket_mode=0o600,
        grace=300.0,
        runtimes=(
            RuntimeConfig(name="containerd", socket="/run/containerd/containerd.sock"),
            RuntimeConfig(
                name="virtlet.cloud",
                socket="/run/virtlet.sock",
                handlers=("virtlet", "kvm"),
                grace=math.inf,
                stream_url="http://127.0.0.1:10010",
                dial=Dial(timeout=2.0, first_wait=0.05, longest_wait=1.0),
                limits=Limits(read_seconds=3.0, call_seconds=7200.0, calls=100, message_bytes=1000),
            ),
        ),
    )


def test_a_mode_may_be_a_yaml_number(tmp_path: Path) -> None:
    text = FULL.replace('"0600"', "0o600").replace("0o600", "0600")
    assert load(tmp_path, text).socket_mode == 0o600


RUNTIMES = "runtimes: [{name: a, socket: /a}]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no socket to listen on"),
        ("listen: /l", "no runtimes"),
        (f"listen: l\n{RUNTIMES}", "listen: 'l' is not an absolute socket path"),
        ("- a list", "top level: write keys and values"),
        ("a: [unclosed", "is not YAML"),
        ("lisen: /l", "unknown key 'lisen'; known are listen,"),
        ("runtimes: {a: /a}", "runtimes: write a list"),
        ("runtimes: [/a]", r"runtimes\[0\]: write keys and values"),
        ("runtimes: [{name: a}]", r"'runtimes\[0\].socket' is missing"),
        ("runtimes: [{name: a, socket: /a, handlers: x}]", "list of RuntimeClass handlers"),
        ("runtimes: [{name: a, socket: /a, grace: soon}]", "'soon' is not a duration"),
        ("runtimes: [{name: a, socket: /a, grace: -1}]", "-1 is not a duration"),
        ("runtimes: [{name: a, socket: /a, dial: {timeot: 1}}]", "unknown key .*timeot"),
        ("runtimes: [{name: a, socket: /a, dial: {first_wait: 0}}]", "0 is too short; write 10ms"),
        ("runtimes: [{name: a, socket: /a, limits: {read_seconds: 0}}]", "0 is too short"),
        ("runtimes: [{name: a, socket: /a, limits: {calls: 0}}]", "not a whole number above 0"),
        ("runtimes: [{name: a, socket: /a, stream_url: x}]", "is not an URL"),
        ("runtimes: [{name: a, socket: /a, stream_url: 'http://x'}]", "is not HOST:PORT"),
        ("http: 10009", "is not HOST:PORT"),
        ("http: 'x:99999'", "is not HOST:PORT"),
        ("state_dir: here", "state_dir: 'here' is not an absolute path"),
        ("socket_mode: '999'", "is not a file mode"),
    ],
)
def test_what_does_not_fit_is_named_with_the_file(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path, text)


def test_a_second_document_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"criproxy\.yaml: holds 2 documents"):
        load(tmp_path, f"{FULL}\n---\nhttp: null\n")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml"):
        read_file(str(tmp_path / "none.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        read_file(str(tmp_path / "binary.yaml"))


def test_the_original_form_is_understood() -> None:
    runtimes = parse_connect("/run/containerd/containerd.sock,virtlet.cloud:/run/virtlet.sock")
    assert [(r.name, r.socket) for r in runtimes] == [
        ("primary", "/run/containerd/containerd.sock"),
        ("virtlet.cloud", "/run/virtlet.sock"),
    ]


def test_the_primary_may_have_a_name_and_sockets_a_scheme() -> None:
    runtimes = parse_connect("containerd:unix:///a.sock, b:/b.sock,c:unix:/c.sock")
    assert [(r.name, r.socket) for r in runtimes] == [
        ("containerd", "/a.sock"),
        ("b", "/b.sock"),
        ("c", "/c.sock"),
    ]


def test_a_scheme_is_not_taken_for_a_name() -> None:
    assert parse_connect("unix:///a.sock")[0].name == "primary"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "neither a socket path nor NAME:PATH"),
        ("relative.sock", "neither a socket path nor NAME:PATH"),
        ("/a.sock,/b.sock", "part 2: only the first, the primary, goes without a name"),
        ("/a.sock,,b:/b.sock", "part 2"),
        ("/a.sock,b:relative", "not an absolute socket path"),
        ("/a.sock,b:", "not an absolute socket path"),
        ("/a.sock,:/b.sock", "part 2"),
        ("/a.sock,has space:/b.sock", "cannot name a runtime"),
        ("/a.sock,a__b:/b.sock", "no double '__'"),
        (f"/{'x' * 107}", "unix sockets take 107 at most"),
    ],
)
def test_a_part_that_does_not_fit_is_named(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_connect(text)


def config(run_dir: Path, *runtimes: RuntimeConfig, listen: str = "p.sock") -> Config:
    return Config(listen=str(run_dir / listen), runtimes=runtimes)


def runtime(run_dir: Path, name: str, path: str, handlers: tuple[str, ...] = ()) -> RuntimeConfig:
    return RuntimeConfig(name=name, socket=str(run_dir / path), handlers=handlers)


def test_sockets_that_are_not_there_yet_are_fine(run_dir: Path) -> None:
    check(config(run_dir, runtime(run_dir, "a", "a.sock"), runtime(run_dir, "b", "x/b.sock")))


def test_two_runtimes_with_one_name(run_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"two runtimes are called 'a': .*a\.sock and .*b\.sock"):
        check(config(run_dir, runtime(run_dir, "a", "a.sock"), runtime(run_dir, "a", "b.sock")))


def test_two_runtimes_with_one_socket_also_over_a_link(run_dir: Path) -> None:
    os.symlink(run_dir / "a.sock", run_dir / "b.sock")
    with pytest.raises(ConfigError, match="runtimes a and b both have the socket"):
        check(config(run_dir, runtime(run_dir, "a", "a.sock"), runtime(run_dir, "b", "b.sock")))


def test_two_runtimes_with_one_handler(run_dir: Path) -> None:
    first = runtime(run_dir, "a", "a.sock", ("vm",))
    second = runtime(run_dir, "b", "b.sock", ("vm",))
    with pytest.raises(ConfigError, match="runtimes a and b both claim the handler 'vm'"):
        check(config(run_dir, first, second))


def test_the_proxys_own_socket_also_over_a_link(run_dir: Path) -> None:
    os.symlink(run_dir / "p.sock", run_dir / "a.sock")
    with pytest.raises(ConfigError, match="it would call itself"):
        check(config(run_dir, runtime(run_dir, "a", "a.sock")))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.write_text(""), "a regular file"),
        (lambda path: path.mkdir(), "a directory"),
        (lambda path: os.mkfifo(path), "a FIFO"),
        (lambda path: os.symlink("/dev/null", path), "a character device"),
    ],
)
def test_a_path_that_is_no_socket(run_dir: Path, make: object, kind: str) -> None:
    make(run_dir / "a.sock")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=rf"runtime a: .*a\.sock is not a socket \({kind}\)"):
        check(config(run_dir, runtime(run_dir, "a", "a.sock")))
    with pytest.raises(ConfigError, match=rf"cannot listen on .*a\.sock: .*\({kind}\)"):
        check(config(run_dir, runtime(run_dir, "b", "b.sock"), listen="a.sock"))


def test_a_link_to_itself(run_dir: Path) -> None:
    os.symlink(run_dir / "a.sock", run_dir / "a.sock")
    with pytest.raises(ConfigError, match=r"a\.sock cannot be a socket: "):
        check(config(run_dir, runtime(run_dir, "a", "a.sock")))


def test_a_place_below_a_file(run_dir: Path) -> None:
    (run_dir / "file").write_text("")
    good = runtime(run_dir, "a", "a.sock")
    with pytest.raises(ConfigError, match=r"runtime b: .*file is not a directory"):
        check(config(run_dir, good, runtime(run_dir, "b", "file/b.sock")))
    with pytest.raises(ConfigError, match=r"cannot listen on .*file is not a directory"):
        check(config(run_dir, good, listen="file/x/p.sock"))
    for place in ("file", "file/state"):
        with pytest.raises(ConfigError, match=r"state directory.*file is not a directory"):
            check(evolve(config(run_dir, good), state_dir=str(run_dir / place)))


def test_a_directory_that_is_not_there_may_come(run_dir: Path) -> None:
    check(config(run_dir, runtime(run_dir, "a", "a.sock"), listen="none/p.sock"))
    assert "there is no directory" in (cannot_listen(str(run_dir / "none" / "p.sock")) or "")


def test_a_socket_that_another_process_serves(run_dir: Path) -> None:
    path = str(run_dir / "p.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        check(config(run_dir, runtime(run_dir, "a", "a.sock")))
        assert "another process serves it" in (cannot_listen(path) or "")
    # What it leaves behind is nobody's and can be replaced.
    assert cannot_listen(path) is None
