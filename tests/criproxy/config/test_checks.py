"""What can only be a mistake is found before anything starts."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from attrs import evolve

from criproxy.config.checks import cannot_listen, check
from criproxy.config.schema import Config, ConfigError, RuntimeConfig


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
