"""A guest's TPM: what is sealed to it is its own, outlives a reboot, and goes with the VM.

The commands are those of "TPM 2.0 Library, Part 3", written byte for byte.
"""

import base64
import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from tests.e2e.conftest import AS_THE_UNIT, TINY, Pod, make_manifest
from tests.polling import until
from virtlet.cli.client import CallFailed
from virtlet.cli.playground import Playground

_NO_SESSIONS, _SESSIONS = 0x8001, 0x8002
_OWNER, _PASSWORD = 0x40000001, 0x40000009
_CREATE_PRIMARY, _CREATE, _LOAD, _UNSEAL = 0x131, 0x153, 0x157, 0x15E
_AUTHORITY = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)
"""An empty password."""
_PARENT, _CHILD = 0x80000000, 0x80000001
"""Handles of the first and the second object that is loaded."""
_ECC_PARENT = bytes.fromhex("0023 000b 00030072 0000 0006 0080 0043 0010 0003 0010 0000 0000")
"""The template of a storage key: fixed to the TPM, restricted decryption, AES 128, NIST P-256."""
_SEALED = bytes.fromhex("0008 000b 00000052 0000 0010 0000")
"""The template of data that is fixed to the TPM."""
_MARK = b"kept variables"
"""At the end of the file, where the firmware writes when it is full."""
_NONE = struct.pack(">H", 0) + struct.pack(">I", 0)
"""No data from outside, and no PCRs."""


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _send(pod: Pod, code: int, handles: bytes, parameters: bytes) -> tuple[int, bytes]:
    """Have the guest send a command to its TPM: the response code, and what follows it."""
    body = handles + _AUTHORITY + parameters
    command = struct.pack(">HII", _SESSIONS, 10 + len(body), code) + body
    text = base64.b64encode(command).decode()
    script = f"echo {text} | base64 -d >/tmp/c; exec 3<>/dev/tpm0; dd if=/tmp/c bs=4096 >&3 "
    script += "2>/dev/null; dd bs=4096 count=1 <&3 2>/dev/null | base64"
    output = pod.exec("/bin/sh", "-c", script)
    assert output.exit_code == 0, output.stderr
    answer = base64.b64decode(output.stdout)
    _, size, result = struct.unpack(">HII", answer[:10])
    assert size == len(answer)
    return result, answer[10:]


def _make_parent(pod: Pod) -> None:
    """Load the storage key, which is the same at each boot of one TPM."""
    parameters = _sized(_sized(b"") + _sized(b"")) + _sized(_ECC_PARENT) + _NONE
    result, _ = _send(pod, _CREATE_PRIMARY, struct.pack(">I", _OWNER), parameters)
    assert result == 0


def _seal(pod: Pod, secret: bytes) -> bytes:
    """What the TPM makes of a secret, for itself alone to open."""
    parameters = _sized(_sized(b"") + _sized(secret)) + _sized(_SEALED) + _NONE
    result, answer = _send(pod, _CREATE, struct.pack(">I", _PARENT), parameters)
    assert result == 0
    private = 2 + struct.unpack_from(">H", answer, 4)[0]
    public = 2 + struct.unpack_from(">H", answer, 4 + private)[0]
    return answer[4 : 4 + private + public]


def _unseal(pod: Pod, blob: bytes) -> bytes | None:
    """The secret, or None where the TPM does not take the blob for its own."""
    result, _ = _send(pod, _LOAD, struct.pack(">I", _PARENT), blob)
    if result:
        return None
    result, answer = _send(pod, _UNSEAL, struct.pack(">I", _CHILD), b"")
    assert result == 0
    (size,) = struct.unpack_from(">H", answer, 4)
    return answer[6 : 6 + size]


@pytest.fixture(scope="module")
def node() -> Iterator[Playground]:
    machines = {"tpm": {"tpm": True}, "uefi-tpm": {"tpm": True, "firmware": "uefi"}}
    settings = {"handlers": {name: {"flavor": flavor} for name, flavor in machines.items()}}
    with Playground(
        {"tiny": TINY}, subnet="10.136.0.0/16", settings=settings, wrapper=AS_THE_UNIT
    ) as node:
        yield node


@pytest.fixture(scope="module")
def pods(node: Playground) -> Iterator[tuple[Pod, Pod]]:
    with node.client() as client:
        made = [Pod(node, client, make_manifest(node, name, "tpm")).up() for name in ("a", "b")]
        yield made[0], made[1]
        for pod in made:
            pod.client.stop(pod.vm, 0)
            pod.down()
        assert node.settled_leftovers() == []


def _swtpm(pod: Pod) -> int:
    directory = pod.node.data_dir / "run/vm" / pod.vm[:12] / "backends/swtpm"
    return int((directory / "pid").read_text())


def test_swtpm_is_the_vms_user_without_network_and_capabilities(pods: tuple[Pod, Pod]) -> None:
    """In the emulator's cgroup."""
    first, second = (_swtpm(pod) for pod in pods)
    emulator = Path(f"/proc/{pods[0].emulator}")
    proc = Path(f"/proc/{first}")
    assert proc.stat().st_uid == emulator.stat().st_uid != 0
    assert proc.stat().st_uid != Path(f"/proc/{second}").stat().st_uid
    assert (proc / "cgroup").read_text() == (emulator / "cgroup").read_text()
    assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert not os.path.samefile(proc / "ns/net", emulator / "ns/net")
    lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(lines[name], 16) == 0
    assert (lines["NoNewPrivs"].strip(), lines["Seccomp"].strip()) == ("1", "2")


def test_a_key_that_is_sealed_to_a_tpm_survives_a_reboot_and_not_another_vm(
    pods: tuple[Pod, Pod],
) -> None:
    pod, other = pods
    _make_parent(pod)
    blob = _seal(pod, b"secret of one VM")
    _make_parent(other)
    assert _unseal(other, blob) is None
    pod.reboot()
    _make_parent(pod)
    assert _unseal(pod, blob) == b"secret of one VM"


def test_its_state_is_its_users_alone_and_goes_with_the_vm(node: Playground) -> None:
    with node.client() as client:
        pod = Pod(node, client, make_manifest(node, "gone", "tpm")).up()
        state, program = pod.directory / "tpm", _swtpm(pod)
        assert state.stat().st_mode & 0o777 == 0o700
        until(lambda: any(state.iterdir()), "the state of the TPM")
        assert {path.stat().st_mode & 0o007 for path in state.iterdir()} == {0}
        pod.client.stop(pod.vm, 0)
        pod.down()
        assert not state.exists()
        assert not Path(f"/proc/{program}").exists()


def test_a_state_that_is_broken_fails_the_start_and_nothing_stays(node: Playground) -> None:
    with node.client() as client:
        pod = Pod(node, client, make_manifest(node, "broken", "tpm")).run().create()
        state = pod.directory / "tpm"
        state.mkdir()
        (state / "tpm2-00.permall").write_bytes(b"nonsense")
        (state / "tpm2-00.permall").chmod(0o644)
        with pytest.raises(
            CallFailed, match="did not start.*the state of the TPM is broken.*a new attempt"
        ):
            client.start(pod.vm)
        assert not (node.data_dir / "run/vm" / pod.vm[:12] / "backends/swtpm").exists()
        pod.down()
        assert not state.exists()


def _variables(pod: Pod) -> Path:
    (files,) = (word for word in pod.command_line if "_VARS" in word and "filename" in word)
    return Path(json.loads(files)["filename"])


@pytest.fixture
def root_device(tmp_path: Path) -> Iterator[Path]:
    """An empty block device of a GiB."""
    file = tmp_path / "root"
    with file.open("wb") as empty:
        empty.truncate(1 << 30)
    argv = ["losetup", "--find", "--show", str(file)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_tpm_and_uefi_variables_outlive_the_pod_where_the_root_disk_does(
    node: Playground, root_device: Path
) -> None:
    """Also a manager that was killed before it had written them back."""

    def pod() -> Pod:
        made = Pod(node, node.client(), make_manifest(node, "kept", "uefi-tpm"))
        made.manifest.container.devices.add(
            host_path=str(root_device), container_path="/", permissions="mrw"
        )
        made = made.up()
        made.wait_for_console("login:")
        return made

    before = node.leftovers()
    first = pod()
    _make_parent(first)
    blob = _seal(first, b"kept secret")
    with _variables(first).open("r+b") as file:
        file.seek(-len(_MARK), os.SEEK_END)
        file.write(_MARK)
    node.kill()
    node.start()
    first = evolve(first, client=node.client())
    first.client.stop(first.vm, 0)
    first.down()
    second = pod()
    _make_parent(second)
    assert _unseal(second, blob) == b"kept secret"
    assert _variables(second).read_bytes().endswith(_MARK)
    second.client.stop(second.vm, 0)
    second.down()
    assert node.settled_leftovers(before) == []
