"""ExecSync in real guests: what exec probes and `kubectl exec` rest on."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import pytest

from tests.e2e.conftest import TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri

BOOT = 90
"""Seconds; a loaded machine without KVM is slow."""
AT_ONCE = 16
"""Commands that may run in a VM at one time."""


@pytest.fixture(scope="module")
def guest() -> Iterator[Pod]:
    """A pod whose guest has just been started, on a node of its own."""
    with Playground({"tiny": TINY}, subnet="10.126.0.0/16") as node, node.client() as client:
        pod = Pod(node, client, make_manifest(node, "commanded"))
        pod.manifest.container.envs.add(key="COLOUR", value=b"red")
        del pod.manifest.pod.annotations["VirtletCloudInitUserDataScript"]
        pod.manifest.pod.linux.sysctls["net.ipv4.ip_forward"] = "1"
        yield pod.up()


def run(pod: Pod, *command: str, timeout: int = BOOT) -> cri.ExecSyncResponse:
    request = cri.ExecSyncRequest(container_id=pod.vm, cmd=command, timeout=timeout)
    reply: cri.ExecSyncResponse = pod.client.call("ExecSync", request, timeout=timeout + 60)
    return reply


def runs(pod: Pod, argument: str) -> bool:
    """Whether the guest has a process with an argument that nothing else has."""
    commands = run(pod, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n'").stdout
    return argument.encode() in commands.split(b"\n")


def test_a_probe_of_a_guest_that_still_boots_does_not_count_as_failed(guest: Pod) -> None:
    """A kubelet throws away the result of a probe with this status, and shows its message."""
    with pytest.raises(CallFailed, match="no guest agent answers .* may still be booting") as early:
        run(guest, "true", timeout=1)
    assert early.value.code is grpc.StatusCode.UNAVAILABLE


def test_a_hook_right_after_the_start_finds_the_guest_booted_and_configured(guest: Pod) -> None:
    """As a kubelet runs postStart: without a time limit of any kind."""
    command = "cat /proc/sys/net/ipv4/ip_forward /etc/cloud/environment /etc/resolv.conf"
    request = cri.ExecSyncRequest(container_id=guest.vm, cmd=["sh", "-c", command])
    reply = guest.client.runtime.ExecSync(request)
    lines = reply.stdout.splitlines()
    assert lines[0] == b"1"
    assert b"COLOUR=red" in lines
    assert any(line.startswith(b"nameserver ") for line in lines)


def test_outputs_and_exit_code_come_back(guest: Pod) -> None:
    reply = run(guest, "sh", "-c", "echo out $COLOUR; echo err >&2; exit 9")
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out red\n", b"err\n", 9)


def test_a_probe_that_takes_too_long_is_killed_in_the_guest(guest: Pod) -> None:
    run(guest, "true")  # also where it is the first to ask
    started = time.monotonic()
    with pytest.raises(CallFailed, match="did not end within 1 seconds") as caught:
        run(guest, "sh", "-c", "sleep 5711 & sleep 5712", timeout=1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 30
    until(lambda: not runs(guest, "5711"), "end of a child of the command")
    until(lambda: not runs(guest, "5712"), "end of the command")


def ended(pod: Pod, argument: str) -> bool:
    return not runs(pod, argument)


def abandoned(pod: Pod, count: int, argument: str) -> None:
    """As many clients that want the same command, and go away before it ends."""
    request = cri.ExecSyncRequest(container_id=pod.vm, cmd=["sleep", argument], timeout=600)
    calls = [pod.client.runtime.ExecSync.future(request, timeout=0.5) for _ in range(count)]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_nobody_waits_for_any_more_is_killed_and_blocks_nothing(guest: Pod) -> None:
    """As many as may run in a VM at once; sooner or later on the threads of the time before.

    Threads are made for as many calls as ever met, which need not be in the first round; those
    that nobody ends would be more in every round.
    """
    threads: list[int] = []
    for argument in map(str, range(5714, 5726)):
        abandoned(guest, AT_ONCE, argument)
        until(partial(has_room, guest), "an end of the abandoned commands", 60)
        until(partial(ended, guest, argument), "their end in the guest", 10)
        assert guest.node.process is not None
        threads.append(len(os.listdir(f"/proc/{guest.node.process.pid}/task")))
        if threads[1:] and threads[-1] <= threads[-2] + 2:
            break
    assert threads[-1] <= threads[-2] + 2, threads


def has_room(pod: Pod) -> bool:
    """Whether as many commands as may run in a VM at once can run."""
    request = cri.ExecSyncRequest(container_id=pod.vm, cmd=["sleep", "1"])
    calls = [pod.client.runtime.ExecSync.future(request, timeout=BOOT) for _ in range(AT_ONCE)]
    codes = {call.code() for call in calls}
    assert codes <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
    return codes == {grpc.StatusCode.OK}


@pytest.mark.parametrize(
    ("command", "code", "why"),
    [
        ((), grpc.StatusCode.INVALID_ARGUMENT, "the command is empty"),
        (("x" * (129 << 10),), grpc.StatusCode.INVALID_ARGUMENT, "at most 131072"),
        (("no-such-program",), grpc.StatusCode.FAILED_PRECONDITION, "cannot run 'no-such-program'"),
    ],
)
def test_a_command_that_cannot_run_is_refused_with_the_reason(
    guest: Pod, command: tuple[str, ...], code: grpc.StatusCode, why: str
) -> None:
    with pytest.raises(CallFailed, match=why) as caught:
        run(guest, *command)
    assert caught.value.code is code
    assert run(guest, "echo", "unharmed").stdout == b"unharmed\n"


def test_a_machine_that_nobody_knows_or_that_does_not_run_is_refused(guest: Pod) -> None:
    with pytest.raises(CallFailed, match="there is no container") as caught:
        guest.client.call("ExecSync", cri.ExecSyncRequest(container_id="0" * 32, cmd=["true"]))
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    idle = Pod(guest.node, guest.client, make_manifest(guest.node, "idle")).run().create()
    with pytest.raises(CallFailed, match="commands need a running one") as caught:
        run(idle, "true")
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    idle.down()


def test_a_flood_of_output_comes_in_an_answer_that_a_kubelet_takes(guest: Pod) -> None:
    reply = run(guest, "head", "-c", str(17 << 20), "/dev/zero")
    assert reply.exit_code == 0
    assert (16 << 20) - (64 << 10) < len(reply.stdout) <= 16 << 20
    assert not reply.stdout.strip(b"\0")


def test_a_manager_that_stops_kills_what_it_ran_and_serves_again_after_it(guest: Pod) -> None:
    failures: list[tuple[grpc.StatusCode, str | None]] = []

    def probe() -> None:
        try:
            request = cri.ExecSyncRequest(container_id=guest.vm, cmd=["sleep", "5713"])
            guest.client.runtime.ExecSync(request, timeout=300)
        except grpc.RpcError as error:
            failures.append((error.code(), error.details()))

    thread = threading.Thread(target=probe)
    thread.start()
    until(lambda: runs(guest, "5713"), "the command in the guest")
    started = time.monotonic()
    guest.node.stop()
    assert time.monotonic() - started < 15
    thread.join(10)
    (code, why) = failures.pop()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the manager stops" in str(why)
    guest.node.start()
    until(lambda: not runs(guest, "5713"), "end of the command")


def test_a_machine_that_stands_still_holds_no_other_up(guest: Pod) -> None:
    other = Pod(guest.node, guest.client, make_manifest(guest.node, "other")).up()
    run(other, "true")
    emulator = other.emulator
    os.kill(emulator, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(AT_ONCE) as stuck:
            calls = [stuck.submit(run, other, "true", timeout=6) for _ in range(AT_ONCE)]
            time.sleep(1)
            assert run(guest, "echo", "on").stdout == b"on\n"
            assert not any(call.done() for call in calls)
        for call in calls:
            failure = call.exception()
            assert isinstance(failure, CallFailed)
            assert failure.code is grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        os.kill(emulator, signal.SIGCONT)
    assert run(other, "echo", "again").stdout == b"again\n"
    other.down()


def test_an_agent_that_dies_is_told_while_other_calls_go_on(guest: Pod) -> None:
    """The last test with this guest."""
    with pytest.raises(CallFailed):
        run(guest, "sh", "-c", "kill -9 $(pidof qemu-ga)", timeout=2)
    started = time.monotonic()
    with pytest.raises(CallFailed, match="does not answer any more.*qemu-guest-agent") as caught:
        run(guest, "true", timeout=1)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - started < 20
    assert guest.status.state == cri.CONTAINER_RUNNING
    guest.down()
