"""The small parts of the hypervisor: URIs, marks, records, log lines, events and errors."""

import os
import stat
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
import pytest

from tests.fakes.model import make_node
from virtlet.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unavailable,
    VirtletError,
)
from virtlet.model.hypervisor import DomainState
from virtlet.model.vm import VmExit
from virtlet.plugins.libvirt_qemu import failures
from virtlet.plugins.libvirt_qemu.consumption import MOST_SILENT, Figures, Measurement
from virtlet.plugins.libvirt_qemu.domain_endings import RunRecords, exit_by_event
from virtlet.plugins.libvirt_qemu.domain_events import DomainWatch
from virtlet.plugins.libvirt_qemu.domains import live_state, mark, written
from virtlet.plugins.libvirt_qemu.failures import ended_by_signal, why
from virtlet.plugins.libvirt_qemu.qemu_conf import locate, prepare_root, take_back, tell_of_owner

VM = "0123456789abcdef0123456789abcdef"
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def test_statistics_wait_for_a_bounded_number_of_emulators() -> None:
    """Calls that are late are left behind, and forgotten once they end."""
    answered, asked = threading.Event(), []

    def ask() -> Figures:
        asked.append(threading.current_thread())
        assert answered.wait(60)
        return {}

    measurement = Measurement(ask, patience=0.001)
    for _ in range(2):
        with pytest.raises(Unavailable, match=f"{MOST_SILENT} emulators do not answer"):
            measurement.take()
    assert len(asked) == MOST_SILENT
    answered.set()
    for thread in asked:
        thread.join()
    measurement._patience = 60
    assert measurement.take() == {}


class _Domain:
    """What an event says of its domain."""

    def UUIDString(self) -> str:  # noqa: N802
        return UUID

    def name(self) -> str:
        return "a domain"


def test_events_that_an_emulator_repeats_wait_once_for_all() -> None:
    """Those at which the domain is looked at; the end of each run counts."""
    handled: list[int] = []
    watch = DomainWatch(lambda seen, _: handled.append(seen.event), lambda _: None)
    watch.subscribe(lambda _: None)
    stopped, resumed = libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_RESUMED
    for event in (resumed, stopped) * 1000:
        watch._take(None, _Domain(), event, 0, None)
    watch._handle_queued()
    assert handled == [resumed, *[stopped] * 1000]
    watch._take(None, _Domain(), resumed, 0, None)
    watch._handle_queued()
    assert handled[-1] == resumed


def test_an_error_of_statistics_is_the_callers() -> None:
    def ask() -> Figures:
        raise Unavailable("libvirt is away")

    with pytest.raises(Unavailable, match="is away"):
        Measurement(ask).take()


@pytest.mark.parametrize(
    ("uri", "opened", "logs"),
    [
        ("qemu:///embed", "qemu:///embed?root=/data/libvirt", "/data/libvirt/log/qemu"),
        ("qemu:///embed?root=/a/b", "qemu:///embed?root=/a/b", "/a/b/log/qemu"),
        ("qemu:///system", "qemu:///system", "/var/log/libvirt/qemu"),
        (
            "qemu+unix:///system?socket=/a/run/sock",
            "qemu+unix:///system?socket=/a/run/sock",
            "/var/log/libvirt/qemu",
        ),
    ],
)
def test_uris_that_are_served(uri: str, opened: str, logs: str) -> None:
    """The embedded driver's root is below the data directory unless said."""
    place = locate(uri, Path("/data"))
    assert place.uri == opened
    assert place.logs == Path(logs)
    assert place.embedded == ("embed" in uri)


def test_a_daemons_state_is_beside_its_socket() -> None:
    """Also for one that was started by hand elsewhere."""
    assert locate("qemu:///system", Path("/d")).state == Path("/run/libvirt/qemu")
    uri = "qemu+unix:///system?socket=/a/run/sock"
    assert locate(uri, Path("/d")).state == Path("/a/run/qemu")


@pytest.mark.parametrize(
    "uri", ["", "xen:///system", "qemu:///session", "qemu:///embed?root=a", "qemu://[system"]
)
def test_uris_that_are_not_served(uri: str) -> None:
    """The message names the setting and those that are."""
    with pytest.raises(InvalidArgument, match="libvirtURI"):
        locate(uri, Path("/data"))


def test_the_embedded_driver_leaves_files_and_cgroups_alone(tmp_path: Path) -> None:
    """And answers questions about QEMU as the emulator's user."""
    prepare_root(tmp_path, make_node(tmp_path, uid=12, gid=34), "qemu")
    text = (tmp_path / "etc/qemu.conf").read_text()
    assert 'user = "+12"' in text
    assert 'group = "+34"' in text
    assert "dynamic_ownership = 0" in text
    assert "cgroup_controllers = [ ]" in text
    assert 'capability_filters = [ "cpu-unavailable-features" ]' in text


def test_under_kvm_all_of_a_cpus_features_are_read(tmp_path: Path) -> None:
    """Some are in no word of CPUID."""
    prepare_root(tmp_path, make_node(tmp_path), "kvm")
    assert "capability_filters = [  ]" in (tmp_path / "etc/qemu.conf").read_text()


def test_libvirts_directories_are_taken_back_and_what_was_planted_is_removed(
    tmp_path: Path,
) -> None:
    """Links, and state that libvirt has not written; what is libvirt's stays."""
    state, library = tmp_path / "run/qemu", tmp_path / "lib/qemu"
    for directory in (state, library / "domain-1-mine", library / "nvram"):
        directory.mkdir(parents=True)
    (library / "save").symlink_to("/etc")
    (state / "planted.xml").symlink_to("/etc/passwd")
    for name, owner in (("mine.xml", 0), ("other.xml", 12)):
        (state / name).touch()
        os.chown(state / name, owner, 0)
    for directory in (state, library, library / "nvram", library / "domain-1-mine"):
        os.chown(directory, 12, 34)
    take_back(tmp_path)
    assert {path.name for path in state.iterdir() if path.is_file()} == {"mine.xml"}
    assert not (library / "save").is_symlink()
    assert (library / "domain-1-mine").stat().st_uid == 12
    owners = {path: path.stat() for path in (tmp_path, state, library, library / "save")}
    assert {(status.st_uid, status.st_gid) for status in owners.values()} == {(0, 0)}
    assert [stat.S_IMODE(status.st_mode) for status in owners.values()] == [
        0o711,
        0o700,
        0o711,
        0o700,
    ]


def test_a_daemon_whose_directories_belong_to_emulators_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the lines that its configuration needs."""
    node = make_node(tmp_path, uid=12, gid=34)
    tell_of_owner(tmp_path, node)
    tell_of_owner(tmp_path / "none", node)
    assert caplog.text == ""
    os.chown(tmp_path, 12, 34)
    tell_of_owner(tmp_path, node)
    assert 'write `user = "+0"` and `group = "+0"` into qemu.conf' in caplog.text


def test_a_mark_replaces_an_older_one_and_keeps_the_rest() -> None:
    """A renderer may have metadata of its own."""
    domain = ElementTree.fromstring('<domain><metadata><y xmlns="urn:x"/></metadata></domain>')
    mark(domain, VM, "one")
    mark(domain, VM, "two")
    (metadata,) = domain
    assert [element.attrib for element in metadata] == [{}, {"instance": "two", "id": VM}]
    assert 'xmlns:virtlet="urn:virtlet:domain:1"' in written(domain)


def test_documents_are_written_on_several_threads() -> None:
    """The table of prefixes, which they share, makes none of them fail."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            texts = set(threads.map(lambda _: written(Element("domain")), range(20_000)))
    finally:
        sys.setswitchinterval(before)
    assert texts == {"<domain />"}


def test_a_run_is_remembered_until_it_is_forgotten(tmp_path: Path) -> None:
    """By anyone who looks, also after a restart."""
    runs, ended = (
        RunRecords(tmp_path / "runs"),
        VmExit(exit_code=0, reason="Completed", message="off", finished_at=7),
    )
    assert not runs.begun(VM)
    assert runs.end(VM, ended) == ended
    assert runs.ended(VM) is None, "what never began cannot end"
    runs.begin(VM)
    assert runs.begun(VM)
    assert runs.ended(VM) is None
    assert runs.end(VM, ended) == ended
    assert RunRecords(tmp_path / "runs").ended(VM) == ended
    runs.forget(VM)
    runs.forget(VM)
    assert not runs.begun(VM)


def test_the_first_word_on_an_end_stands(tmp_path: Path) -> None:
    """What saw it best comes first."""
    runs = RunRecords(tmp_path)
    runs.begin(VM)
    first = runs.end(VM, VmExit(exit_code=1, reason="Error", message="panic", finished_at=1))
    assert (
        runs.end(VM, VmExit(exit_code=137, reason="Error", message="died", finished_at=2)) == first
    )


def test_a_damaged_record_is_an_end_that_was_not_seen(tmp_path: Path) -> None:
    """It never stops the manager from looking."""
    (tmp_path / VM).write_text("{half")
    runs = RunRecords(tmp_path)
    assert runs.begun(VM)
    assert runs.ended(VM) is None


@pytest.mark.parametrize(
    ("message", "log", "words", "absent"),
    [
        (
            "internal error: QEMU unexpectedly closed the monitor (vm='v'): "
            "2026-01-02T03:04:05.123456Z qemu-system-x86_64: -x: invalid option",
            None,
            "closed the monitor (vm='v'): qemu-system-x86_64: -x: invalid option",
            "2026",
        ),
        (
            "internal error: process exited while connecting to monitor",
            "2026-01-02 03:04:05.123+0000: starting up libvirt version: 11\n"
            "LC_ALL=C \\\nVIRTLET_LAUNCH_TOKEN=secret \\\n/bin/vmwrapper \\\n-msg timestamp=on\n"
            "vmwrapper: cannot reach the manager\n"
            "2026-01-02 03:04:06.123+0000: shutting down, reason=failed\n",
            "monitor: vmwrapper: cannot reach the manager",
            "secret",
        ),
        (
            "internal error: process exited",
            "old words\n2026-01-02 03:04:05.123+0000: starting up libvirt version: 11\n",
            "internal error: process exited",
            "old words",
        ),
        ("short", None, "short", ":"),
        ("x" * 5000, "y" * 5000, "x", "z"),
    ],
)
def test_what_a_failed_start_tells(
    tmp_path: Path, message: str, log: str | None, words: str, absent: str
) -> None:
    """The last messages of the emulator, never its command line."""
    path = tmp_path / "domain.log"
    if log is not None:
        path.write_text(log)
    text = why(message, path)
    assert words in text
    assert absent not in text
    assert len(text) <= 600


@pytest.mark.parametrize(
    ("state", "ours"),
    [
        (libvirt.VIR_DOMAIN_RUNNING, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_BLOCKED, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_SHUTDOWN, DomainState.RUNNING),
        (libvirt.VIR_DOMAIN_PAUSED, DomainState.PAUSED),
        (libvirt.VIR_DOMAIN_PMSUSPENDED, DomainState.PAUSED),
        (libvirt.VIR_DOMAIN_CRASHED, DomainState.PAUSED),
        (libvirt.VIR_DOMAIN_SHUTOFF, None),
    ],
)
def test_what_has_an_emulator_is_live(state: int, ours: DomainState | None) -> None:
    """Also while the guest is off already and the emulator writes out the rest."""
    assert live_state(state, 0) is ours


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (None, False),
        ("2026-01-01 10:00:00.000+0000: starting up libvirt version: 11.3.0\n", False),
        ("qemu-system-x86_64: terminating on signal 15 from pid 77 (sh)\n", True),
        ("qemu-system-x86_64: terminating on signal 15\n", True),
        ("qemu-system-x86_64: terminating on signal 15 from pid 77 (/usr/sbin/libvirtd)\n", False),
        (
            "2026-01-01T10:00:00.000000Z qemu-system-x86_64: terminating on signal 15 from pid 7\n"
            "2026-01-01 10:00:01.000+0000: shutting down, reason=crashed\n",
            True,
        ),
        (
            "qemu-system-x86_64: terminating on signal 15 from pid 77 (sh)\n"
            "2026-01-01 10:00:02.000+0000: starting up libvirt version: 11.3.0\n",
            False,
        ),
    ],
)
def test_the_log_tells_of_a_signal(tmp_path: Path, log: str | None, told: bool) -> None:
    """The last run's, not that of one before."""
    path = tmp_path / "domain.log"
    if log is not None:
        path.write_text(log)
    assert ended_by_signal(path) is told


def test_the_embedded_drivers_own_signal_is_none(tmp_path: Path) -> None:
    """The driver is in the manager's process."""
    path = tmp_path / "domain.log"
    path.write_text(f"qemu-system-x86_64: terminating on signal 15 from pid {os.getpid()} (x)\n")
    assert not ended_by_signal(path)


def test_a_starting_domain_is_not_paused() -> None:
    """Its CPUs stand still for a moment, without a request to pause."""
    reason = libvirt.VIR_DOMAIN_PAUSED_STARTING_UP
    assert live_state(libvirt.VIR_DOMAIN_PAUSED, reason) is DomainState.RUNNING


@pytest.mark.parametrize(
    ("detail", "logged", "signalled", "memory", "code", "reason"),
    [
        # libvirt itself ends an emulator by a signal once the guest has powered off.
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, True, False, False, 0, "Completed"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN, True, True, False, 143, "Error"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED, True, True, False, 137, "Error"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED, True, False, False, 1, "Error"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, False, False, False, 137, "Error"),
        # libvirt heard that the emulator is gone before it heard why.
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, True, False, False, 143, "Error"),
        (libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED, False, False, True, 137, "OOMKilled"),
        (99, True, False, False, 255, "Error"),
    ],
)
def test_how_an_end_is_told(
    detail: int, logged: bool, signalled: bool, memory: bool, code: int, reason: str
) -> None:
    """In the container world's exit codes and words."""
    ended = exit_by_event(detail, lambda: logged, signalled=signalled, out_of_memory=memory)
    assert (ended.exit_code, ended.reason) == (code, reason)
    assert ended.message


QEMU_DRIVER = libvirt.VIR_FROM_QEMU


def raised(code: int, source: int = QEMU_DRIVER, message: str = "it failed") -> Any:
    """An error as libvirt raises it."""
    error = libvirt.libvirtError("wrapped")
    error.err = (code, source, message, 2, "", None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (raised(libvirt.VIR_ERR_NO_DOMAIN), NotFound),
        (raised(libvirt.VIR_ERR_XML_ERROR), InvalidArgument),
        (raised(libvirt.VIR_ERR_XML_DETAIL), InvalidArgument),
        (raised(libvirt.VIR_ERR_CONFIG_UNSUPPORTED), InvalidArgument),
        (raised(libvirt.VIR_ERR_OPERATION_FAILED), AlreadyExists),
        (raised(libvirt.VIR_ERR_OPERATION_TIMEOUT), Unavailable),
        (raised(libvirt.VIR_ERR_NO_CONNECT), Unavailable),
        (raised(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_RPC), Unavailable),
        (raised(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_RPC), Unavailable),
        (raised(libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_QEMU), VirtletError),
        (raised(libvirt.VIR_ERR_NO_MEMORY), VirtletError),
    ],
)
def test_errors_become_ours(error: Any, kind: type[VirtletError]) -> None:
    """With what was tried, and libvirt's reason."""
    ours = failures.translate(error, "define VM 0123")
    assert type(ours) is kind
    assert str(ours).startswith("cannot define VM 0123: it failed")


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (failures.is_missing, libvirt.VIR_ERR_NO_DOMAIN),
        (failures.is_wrong_state, libvirt.VIR_ERR_OPERATION_INVALID),
        (failures.is_lost, libvirt.VIR_ERR_NO_CONNECT),
    ],
)
def test_what_callers_pass_over_is_told_by_name(check: Callable[[Any], bool], code: int) -> None:
    """And nothing else is."""
    assert check(raised(code))
    assert not check(raised(libvirt.VIR_ERR_NO_MEMORY))


def test_long_messages_are_cut() -> None:
    """libvirt quotes logs and documents."""
    assert len(failures.short(raised(libvirt.VIR_ERR_XML_ERROR, message="x" * 9999))) == 500
    assert failures.short(libvirt.libvirtError("")) != ""
