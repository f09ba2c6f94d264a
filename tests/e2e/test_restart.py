"""The manager goes and comes back; the VMs do not care."""

import os
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.playground import START_TIMEOUT, Playground, PlaygroundError
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns


@pytest.fixture(scope="module")
def own_node() -> Iterator[Playground]:
    """A node whose manager these tests may kill."""
    with Playground({"tiny": TINY}, subnet="10.124.0.0/16", wrapper=AS_THE_UNIT) as playground:
        yield playground


def test_sigterm_leaves_the_machine_running_and_everything_works_after_the_next_start(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "kept")).up()
    emulator = pod.emulator
    assert own_node.stop() == 0
    os.kill(emulator, 0)
    own_node.start()
    assert pod.status.state == cri.CONTAINER_RUNNING
    assert pod.wait_for_answer()
    pod.wait_for_console("login:")
    assert pod.console().count("Linux version") == 1
    pod.client.stop(pod.vm, 30)
    assert pod.status.reason == "Completed"
    pod.down()
    assert own_node.settled_leftovers() == []


def test_the_service_manager_is_told_of_a_start_once_the_socket_serves(
    own_node: Playground,
) -> None:
    own_node.stop()
    address = own_node.directory / "notify"
    served: list[bool] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(address))
        told.settimeout(START_TIMEOUT)

        def wait() -> bytes:
            word = told.recv(100)
            served.append(own_node.ready())
            return word

        own_node.environment["NOTIFY_SOCKET"] = str(address)
        with ThreadPoolExecutor(1) as waiting:
            word = waiting.submit(wait)
            own_node.start()
            assert word.result() == b"READY=1"
        assert served == [True]
        assert own_node.stop() == 0
        assert told.recv(100) == b"STOPPING=1"
    del own_node.environment["NOTIFY_SOCKET"]
    own_node.start()


def test_an_image_that_is_removed_stays_as_long_as_a_machine_uses_it(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "imageless")).up()
    image = pod.status.image_id
    file = own_node.data_dir / "images" / "data" / image.removeprefix("sha256:")
    spec = cri.ImageSpec(image=image)
    pod.client.call("RemoveImage", cri.RemoveImageRequest(image=spec))
    assert not pod.client.call("ImageStatus", cri.ImageStatusRequest(image=spec)).HasField("image")
    own_node.stop()
    own_node.start()  # cleans up
    assert file.exists()
    pod.wait_for_console("login:")
    pod.reboot()
    assert pod.wait_for_answer()
    pod.down()
    assert not file.exists()
    assert own_node.settled_leftovers() == []


def test_sigterm_does_not_wait_for_the_grace_of_a_guest_that_is_being_stopped(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "slow")).up()
    request = cri.StopContainerRequest(container_id=pod.vm, timeout=120)
    stopping = pod.client.runtime.StopContainer.future(request)  # the firmware hears no button
    with pytest.raises(grpc.FutureTimeoutError):
        stopping.result(timeout=1)
    started = time.monotonic()
    assert own_node.stop() == 0
    assert time.monotonic() - started < 60
    # A guest that has booted within the manager's own grace reacts to the next press of the button.
    reacted = stopping.code() is grpc.StatusCode.OK
    own_node.start()
    assert pod.status.state == (cri.CONTAINER_EXITED if reacted else cri.CONTAINER_RUNNING)
    pod.down()
    assert own_node.settled_leftovers() == []


def test_what_a_guest_prints_while_the_manager_is_dead_is_in_the_log_later(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "talks")).up()
    own_node.kill()
    until(lambda: b"login:" in _raw(pod), "the guest's login prompt", 90)
    own_node.start()
    pod.wait_for_console("login:", 10)
    console = pod.console()
    assert console.count("Linux version") == 1
    pod.down()


def _raw(pod: Pod) -> bytes:
    return (pod.node.data_dir / "run" / "vm" / pod.vm[:12] / "console.out").read_bytes()


def test_an_emulator_that_died_while_nobody_watched_is_exited_with_a_reason(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "dies")).up()
    emulator = pod.emulator
    own_node.kill()
    os.kill(emulator, signal.SIGKILL)
    own_node.start()
    until(lambda: pod.status.state == cri.CONTAINER_EXITED, "the end of the VM", 30)
    status = pod.status
    assert status.exit_code != 0
    assert status.reason
    assert status.finished_at >= status.started_at
    pod.down()
    assert own_node.settled_leftovers() == []


def test_after_a_reboot_the_pod_is_not_ready_its_address_is_free_and_a_new_attempt_runs(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "rebooted")).up()
    emulator, address = pod.emulator, pod.address
    own_node.kill()
    # What a reboot takes: processes and namespaces. The file that held the namespace stays.
    os.kill(emulator, signal.SIGKILL)
    _end_servers(own_node)
    namespace = own_node.data_dir / "run" / "netns" / pod.id
    netns.delete(namespace)
    namespace.touch()
    own_node.start()
    assert pod.client.pod_status(pod.id).state == cri.SANDBOX_NOTREADY
    assert pod.status.state == cri.CONTAINER_EXITED
    assert not (own_node.directory / "ipam" / "playground" / address).exists()
    pod.pod.metadata.attempt = 1
    again = Pod(own_node, pod.client, pod.manifest).run()
    assert again.address
    pod.down()
    again.down()
    assert own_node.settled_leftovers() == []


def _end_servers(node: Playground) -> None:
    """Kill the DHCP servers of a node's pods."""
    for line in node.leftovers():
        kind, subject = line.split(maxsplit=1)
        if kind == "process" and "dnsmasq" in subject:
            os.kill(int(subject.split()[0]), signal.SIGKILL)


def test_an_emulator_that_is_killed_is_exited_with_a_reason(own_node: Playground) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "killed")).up()
    os.kill(pod.emulator, signal.SIGKILL)
    until(lambda: pod.status.state == cri.CONTAINER_EXITED, "the end of the VM", 10)
    assert pod.status.exit_code != 0
    assert pod.status.reason
    pod.down()


def test_a_pod_whose_records_are_lost_goes_without_a_trace_at_the_next_start(
    own_node: Playground,
) -> None:
    kept = Pod(own_node, own_node.client(), make_manifest(own_node, "stays")).run()
    before = own_node.settled_leftovers()
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "forgotten")).up()
    own_node.kill()
    with closing(sqlite3.connect(own_node.data_dir / "virtlet.db")) as database, database:
        database.execute("DELETE FROM pods WHERE id = ?", (pod.id,))
        database.execute("DELETE FROM vms WHERE id = ?", (pod.vm,))
        database.execute("DELETE FROM effects WHERE owner IN (?, ?)", (pod.id, pod.vm))
    own_node.start()
    assert own_node.settled_leftovers(before) == []
    assert kept.client.pod_status(kept.id).state == cri.SANDBOX_READY
    kept.down()
    assert own_node.settled_leftovers() == []


def test_another_database_is_refused_and_the_machine_and_its_disks_stay(
    own_node: Playground,
) -> None:
    pod = Pod(own_node, own_node.client(), make_manifest(own_node, "guarded")).up()
    emulator = pod.emulator
    assert own_node.stop() == 0
    database = own_node.data_dir / "virtlet.db"
    instance = (own_node.data_dir / "instance").read_text().strip()
    other = own_node.directory / "other.db"
    own_node.environment["VIRTLET_DATABASE_PATH"] = str(other)
    with pytest.raises(PlaygroundError, match=f"belongs to instance {instance}"):
        own_node.start()
    assert not other.exists()
    del own_node.environment["VIRTLET_DATABASE_PATH"]
    aside = database.rename(own_node.directory / "aside.db")
    with pytest.raises(PlaygroundError, match=f"{database} does not exist"):
        own_node.start()
    aside.rename(database)
    own_node.start()
    assert pod.emulator == emulator
    assert pod.status.state == cri.CONTAINER_RUNNING
    assert pod.wait_for_answer()
    pod.down()
    assert own_node.settled_leftovers() == []
