"""A real Debian: what cloud-init, systemd and the guest agent make of a pod's description."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import evolve, frozen

from tests.e2e.conftest import AS_THE_UNIT, ROOT, Pod
from tests.fakes import kubelet
from tests.fakes.kubelet import volumes, write_account, write_atomic
from virtlet.cli.playground import Playground

EXAMPLE = ROOT / "examples" / "pods" / "debian.yaml"
BOOTED = 480
"""Seconds; a minute or two on an idle machine without KVM."""
pytestmark = pytest.mark.timeout(600)


@frozen
class Debian:
    """Two guests that boot side by side: by BIOS with NoCloud from SCSI disks, and by UEFI with a
    ConfigDrive from NVMe disks."""

    nocloud: Pod
    configdrive: Pod
    key: Path


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.fixture(scope="module")
def debian(debian_image: Path, key: Path) -> Iterator[Debian]:
    # A distribution runs more code than the default buffer holds.
    quick = {"translation_buffer": "192Mi"}
    handlers = {
        "": {"flavor": quick},
        "uefi": {"flavor": quick | {"firmware": "uefi", "disk_bus": "nvme"}},
    }
    with (
        Playground(
            {"debian": debian_image},
            subnet="10.134.0.0/16",
            settings={"handlers": handlers},
            wrapper=AS_THE_UNIT,
        ) as node,
        node.client() as client,
        ExitStack() as cleanup,
    ):
        public = key.with_suffix(".pub").read_text().strip()
        made = []
        for name, handler in (("debian", ""), ("debian-uefi", "uefi")):
            example = volumes.Example.read(EXAMPLE, name)
            annotations = example.pod["metadata"]["annotations"]
            for annotation in ("VirtletSSHKeys", "VirtletCloudInitUserData"):
                text = annotations[annotation]
                (old,) = {line.strip("- ") for line in text.splitlines() if "ssh-ed25519" in line}
                annotations[annotation] = text.replace(old, public)
            if handler:
                annotations["VirtletCloudInitImageType"] = "configdrive"
            manifest = evolve(example.manifest(node.log_root), handler=handler)
            kubelet.complete(manifest, node.kubelet_dir)
            cleanup.enter_context(volumes.made(example, manifest, node.kubelet_dir))
            made.append(Pod(node, client, manifest).up())
        for pod in made:
            run(pod, "cloud-init status --wait || true")
        yield Debian(made[0], made[1], key)
        for pod in made:
            pod.down()
        assert node.settled_leftovers() == []


def run(pod: Pod, script: str) -> str:
    """What a script prints in the guest; the first one waits for the boot."""
    output = pod.exec("/bin/sh", "-c", script, timeout=BOOTED)
    assert output.exit_code == 0, f"{output.stdout}{output.stderr}"
    return output.stdout


@pytest.fixture(params=["nocloud", "configdrive"])
def pod(debian: Debian, request: pytest.FixtureRequest) -> Pod:
    found: Pod = getattr(debian, request.param)
    return found


def test_cloud_init_is_done_without_errors(pod: Pod) -> None:
    status = json.loads(run(pod, "cloud-init status --format json || true"))
    assert status["errors"] == []
    assert status["recoverable_errors"] == {}
    assert status["status"] == "done"
    wanted = pod.pod.annotations["VirtletCloudInitImageType"] or "nocloud"
    assert status["datasource"].lower() == wanted


def test_the_firmware_is_the_handlers(debian: Debian) -> None:
    script = "test -e /sys/firmware/efi && echo uefi || echo bios"
    assert run(debian.nocloud, script) == "bios\n"
    assert run(debian.configdrive, script) == "uefi\n"


def test_a_user_logs_in_with_the_pods_key(debian: Debian, pod: Pod) -> None:
    """Over the pod's network, from the node; the user may become root without a password."""
    options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"]
    ssh = ["nsenter", f"--net={pod.node.netns}", "timeout", "110", "ssh", "-v", "-F", "none"]
    ssh += ["-i", str(debian.key)]
    ssh += [flag for option in options for flag in ("-o", option)]
    for user in ("demo", "debian"):
        done = subprocess.run(
            [*ssh, f"{user}@{pod.address}", "sudo id -un; id -un"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        # With -v it says how far a login got that took too long.
        assert done.stdout.split() == ["root", user], done.stderr


def test_the_root_file_system_fills_the_disk_that_was_asked_for(pod: Pod) -> None:
    assert int(run(pod, "df --output=size -B1 / | tail -n 1")) > 3.5 * (1 << 30)


def test_the_network_is_the_pods(pod: Pod) -> None:
    """Address, routes, servers and search list, in networkd and in resolv.conf."""
    addresses = json.loads(run(pod, "ip -j -4 addr show scope global"))
    (found,) = (a for link in addresses for a in link.get("addr_info", []))
    assert found["local"] == pod.address
    assert "default via" in run(pod, "ip -4 route")
    assert run(pod, "hostname").strip() == pod.pod.hostname
    resolver = run(pod, "resolvectl dns; resolvectl domain; cat /etc/resolv.conf")
    dns = kubelet.CLUSTER_DNS
    for word in (*dns.servers, *dns.searches):
        assert word in resolver
    (search,) = (line for line in resolver.splitlines() if line.startswith("search "))
    assert search.split()[1:] == list(dns.searches)
    assert "options ndots:5" in resolver
    assert run(pod, "systemctl is-active systemd-networkd systemd-resolved").split() == 2 * [
        "active"
    ]


def test_files_environment_and_commands_arrive(pod: Pod) -> None:
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    script = f"""
        cat /etc/demo.conf /etc/settings/app.ini {account}/namespace; echo
        stat -c %a /etc/demo.conf /etc/settings/app.ini; grep GREETING /etc/cloud/environment
    """
    assert run(pod, script).split("\n")[:-1] == [
        "from user-data",
        "colour = blue",
        "default",
        "640",
        "644",
        "GREETING=hello",
    ]


def test_a_directory_is_shared_with_the_node(pod: Pod) -> None:
    """Over virtiofs. What replaces a link on the node replaces it for the guest."""
    assert run(pod, "findmnt -n -o FSTYPE,SOURCE /srv/scratch").split()[0] == "virtiofs"
    run(pod, "echo in the guest >/srv/scratch/file")
    directory = pod.node.kubelet_dir / pod.pod.metadata.uid / "volumes/kubernetes.io~empty-dir"
    shared = directory / "scratch"
    assert (shared / "file").read_text() == "in the guest\n"
    for second, text in enumerate(("one", "two")):
        write_atomic(shared, {"a": (text.encode(), 0o644, 0)}, second)
        run(pod, f'until [ "$(cat /srv/scratch/a)" = {text} ]; do sleep 0.2; done')


def test_a_renewed_token_replaces_the_old_one_and_is_missing_at_no_time(pod: Pod) -> None:
    """Of the service account, as a kubelet renews it before its hour is over."""
    inside = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert run(pod, f"cat {inside}") == "token\n"
    reads = f"while [ ! -e /run/enough ]; do cat {inside}; done >/dev/null 2>>/run/missed"
    run(pod, f"setsid sh -c '{reads}' >/dev/null 2>&1 &")
    volumes = pod.node.kubelet_dir / pod.pod.metadata.uid / "volumes"
    (account,) = volumes.glob("kubernetes.io~projected/kube-api-access-*")
    for second, token in enumerate(("renewed", "renewed-again"), 1):
        write_account(account, token, second)
        run(pod, f'until [ "$(cat {inside})" = {token} ]; do sleep 0.5; done')
    run(pod, "touch /run/enough")
    assert run(pod, "cat /run/missed") == ""


def test_the_disks_are_where_the_handler_has_them(debian: Debian) -> None:
    """The root disk, and the pod's by its serial number."""
    script = "findmnt -n -o SOURCE /; readlink -f /dev/database; cat /sys/block/nvme*/device/serial"
    root, database = run(debian.nocloud, f"({script}) 2>/dev/null || true").split()
    assert (root[:7], database[:7]) == ("/dev/sd", "/dev/sd")
    root, database, *serials = run(debian.configdrive, script).split()
    assert (root[:9], database[:9]) == ("/dev/nvme", "/dev/nvme")
    assert len(serials) == 2
    assert "root" in serials


def test_a_disk_gets_a_file_system_that_is_mounted(pod: Pod) -> None:
    source = "findmnt -n -o SOURCE /srv/database"
    assert run(pod, f"test $({source}) = $(readlink -f /dev/database) && echo same") == "same\n"


def test_systemd_has_no_failed_units(pod: Pod) -> None:
    assert run(pod, "systemctl list-units --failed --plain --no-legend") == ""


def test_a_guest_powers_off_when_it_is_asked_to(debian: Debian) -> None:
    """By its power button, within its grace."""
    debian.nocloud.stop(120)
    assert debian.nocloud.status.reason == "Completed"
