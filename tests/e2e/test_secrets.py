"""What a pod keeps secret shows neither in logs nor in process lists, from its start to its end."""

import os
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import PodFactory
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground

SECRET = "hunter2"
TOKEN = re.compile(rb"VIRTLET_LAUNCH_TOKEN=([\w-]+)")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _holds(path: Path) -> bool:
    return SECRET.encode() in _read(path)


def _open_to_everybody(path: Path, top: Path) -> bool:
    """Whether anybody can read a file, by its mode and those of directories from `top` on."""
    above = path.relative_to(top).parents
    passes = all((top / part).stat().st_mode & 0o001 for part in above)
    return passes and bool(path.stat().st_mode & 0o004)


def test_user_data_environment_and_token_are_in_no_log_and_no_process_list(
    node: Playground, new_pod: PodFactory
) -> None:
    pod = new_pod()
    pod.pod.annotations["VirtletCloudInitUserDataScript"] = f"#!/bin/sh\n: {SECRET}\n"
    pod.manifest.container.envs.add(key="PASSWORD", value=SECRET.encode())
    pod = pod.up()
    with pytest.raises(CallFailed) as refused:
        pod.client.create(pod.id, pod.config(attempt=0, name="other"), pod.pod)
    assert SECRET not in str(refused.value)

    commands = [_read(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    mine = [command for command in commands if pod.vm[:12].encode() in command]
    assert mine, "the emulator is not in the process list"
    assert not any(SECRET.encode() in command for command in mine)

    logs = [path for path in node.data_dir.rglob("*.log") if path.is_file()]
    domain_log = next(path for path in logs if pod.vm[:12] in path.name)
    for log in [node.log_file, *logs]:
        assert SECRET.encode() not in _read(log), log
    assert b"VIRTLET_LAUNCH_TOKEN" not in _read(node.log_file)
    # libvirt writes the domain's environment into its log: used up by then, and root's to read.
    assert TOKEN.search(_read(domain_log)) is None or domain_log.stat().st_mode & 0o077 == 0

    kept = [path for path in node.data_dir.rglob("*") if path.is_file() and _holds(path)]
    assert kept, "nothing holds the user-data"
    assert [path for path in kept if _open_to_everybody(path, node.data_dir)] == []

    pod.down()
    assert SECRET.encode() not in _read(node.log_file)


def test_the_emulator_does_not_inherit_the_token(node: Playground, new_pod: PodFactory) -> None:
    pod = new_pod().up()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and pod.vm[:12].encode() in _read(Path("/proc", entry, "cmdline")):
            assert b"VIRTLET_LAUNCH_TOKEN" not in _read(Path("/proc", entry, "environ"))
            return
    pytest.fail("no emulator")
