"""The tiny guest, booted: everything the runtime and its tests ask of a guest."""

import base64
import json
import subprocess
import urllib.request
from collections.abc import Iterator
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from pathlib import Path

import attrs
import pytest

from tests.polling import until
from tests.tiny.tiny_guest import Guest, JsonSocket, free_port, make_seed

MAC = "52:54:00:00:00:01"


@attrs.frozen
class Running:
    """A guest that is logged in on its console, and the ways in from the host."""

    guest: Guest
    agent: Path
    key: Path
    ssh_port: int
    http_port: int

    def ssh(self, key: Path, command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command over SSH with one key and nothing else to offer."""
        options = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=no"]
        options += ["UserKnownHostsFile=/dev/null", "ConnectTimeout=20", "LogLevel=ERROR"]
        flags = [flag for option in options for flag in ("-o", option)]
        where = ["-F", "none", "-p", str(self.ssh_port), "-i", str(key), "root@127.0.0.1"]
        return subprocess.run(
            ["ssh", *flags, *where, command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


def new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def network_config() -> dict[str, object]:
    subnet = {"type": "static", "address": "10.0.2.77", "netmask": "255.255.255.0"}
    route = {"network": "10.9.0.0", "netmask": "255.255.0.0", "gateway": "10.0.2.9"}
    more = {"gateway": "10.0.2.2", "dns_nameservers": ["10.0.2.3"], "routes": [route]}
    nic = {"type": "physical", "name": "net0", "mac_address": MAC.upper(), "mtu": 1400}
    return {
        "version": 1,
        "config": [
            {"type": "nameserver", "address": ["10.0.2.4"], "search": ["pods.example"]},
            nic | {"subnets": [subnet | more, {"type": "static", "address": "fd00::5/64"}]},
        ],
    }


def cloud_config(**keys: object) -> str:
    return "#cloud-config\n" + json.dumps(keys)


def generated_keys() -> dict[str, object]:
    """The keys that the runtime generates, with what is easily got wrong: quotes and modes."""
    all_bytes = base64.b64encode(bytes(range(256))).decode()
    return {
        "write_files": [
            {"path": "/etc/cloud/environment", "content": "A=1\nB='two \"words\" ä'\n"},
            {"path": "/opt/key", "permissions": "0600", "encoding": "b64", "content": all_bytes},
            {"path": "/opt/deep/number", "permissions": 0o750, "content": "x"},
            {"path": "/data/late", "content": "y", "defer": True},
        ],
        "mounts": [["/dev/disk/by-id/virtio-vol1", "/data", "vfat", "nofail,x-systemd.automount"]],
        "runcmd": ["cd /opt", "pwd >where", ["sh", "-c", 'echo "it\'s $0" >/opt/it', "a  b"]],
        "locale": "C",
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny_image: Path) -> Iterator[Running]:
    """A guest on q35 with a NoCloud seed on a SATA CD-ROM, a static address and a volume."""
    directory = tmp_path_factory.mktemp("guest")
    key = new_key(directory / "key")
    identity = {"instance-id": "pod.namespace", "local-hostname": "seeded"}
    seed = make_seed(
        directory / "seed.iso",
        meta_data=identity | {"public-keys": [key.with_suffix(".pub").read_text()]},
        network_config=network_config(),
        user_data=cloud_config(**generated_keys()),
    )
    volume = directory / "volume.img"
    volume.touch()
    subprocess.run(["mformat", "-C", "-T", "16384", "-i", volume, "::"], check=True)
    ssh, http = free_port(), free_port()
    forward = f"hostfwd=tcp:127.0.0.1:{ssh}-10.0.2.77:22,hostfwd=tcp:127.0.0.1:{http}-10.0.2.77:80"
    with Guest(
        tiny_image,
        directory,
        *("-cdrom", str(seed), "-drive", f"if=none,id=vol1,file={volume},format=raw"),
        *("-device", "virtio-blk-pci,drive=vol1,serial=vol1"),
        network=("-nic", f"user,model=virtio-net-pci,mac={MAC},{forward}"),
    ) as guest:
        guest.login()
        guest.wait_user_data()
        yield Running(guest=guest, agent=guest.agent_path, key=key, ssh_port=ssh, http_port=http)


def test_banner_says_what_the_guest_is_and_how_to_log_in(running: Running) -> None:
    """Above the login stand the kind of guest, its name, its addresses and the ways in."""
    banner = running.guest.transcript.partition("seeded login:")[0]
    assert "Virtlet tiny guest" in banner
    assert "hostname   seeded\n" in banner
    assert "net0 10.0.2.77/24" in banner
    assert "without a password" in banner


def test_kernel_messages_reach_the_console(running: Running) -> None:
    """The console shows the kernel's boot, not the login alone."""
    assert "Linux version" in running.guest.transcript


def test_network_config_version_1_is_applied(running: Running) -> None:
    """Name, MTU, addresses, routes and name servers come from the seed, found by MAC."""
    link = running.guest.run("ip addr show dev net0")
    assert " mtu 1400 " in link
    assert " inet 10.0.2.77/24 " in link
    assert " inet6 fd00::5/64 " in link
    routes = running.guest.run("ip route")
    assert "default via 10.0.2.2 dev net0" in routes
    assert "10.9.0.0/16 via 10.0.2.9 dev net0" in routes
    resolver = running.guest.run("cat /etc/resolv.conf").splitlines()
    assert sorted(resolver) == ["nameserver 10.0.2.3", "nameserver 10.0.2.4", "search pods.example"]


def test_write_files_keeps_content_and_mode(running: Running) -> None:
    """Text with quotes, bytes in base64, a mode as string or number: all as asked."""
    environment = running.guest.run("base64 -w 0 /etc/cloud/environment")
    assert base64.b64decode(environment).decode() == "A=1\nB='two \"words\" ä'\n"
    assert base64.b64decode(running.guest.run("base64 -w 0 /opt/key")) == bytes(range(256))
    modes = running.guest.run("stat -c %a /etc/cloud/environment /opt/key /opt/deep/number")
    assert modes.split() == ["644", "600", "750"]


def test_runcmd_runs_as_one_script_with_quoted_lists(running: Running) -> None:
    """Strings share one shell, so `cd` holds; list entries reach the program as they are."""
    assert running.guest.run("cat /opt/where /opt/it") == "/opt\nit's a  b\n"


def test_mounts_go_by_the_serial_of_a_disk(running: Running) -> None:
    """A volume is mounted by its name in /dev/disk/by-id; systemd's options do no harm."""
    device, directory, kind, options = running.guest.run("grep /data /proc/mounts").split()[:4]
    assert (device, directory, kind) == ("/dev/disk/by-id/virtio-vol1", "/data", "vfat")
    assert options.startswith("rw,")
    # Deferred, so on the volume: below it, it would be hidden.
    assert running.guest.run("cat /data/late") == "y"


def test_unknown_keys_are_named(running: Running) -> None:
    """A cloud-config key that the guest does not know is said on the console."""
    assert "cloud-config: locale is not supported here" in running.guest.transcript


def test_ssh_takes_the_key_of_the_seed_and_no_other(running: Running, tmp_path: Path) -> None:
    """Root logs in with the key from meta-data; another key, or none, is refused."""

    def greeted() -> bool:
        greeting = running.ssh(running.key, "cat /proc/sys/kernel/hostname")
        assert (greeting.returncode, greeting.stdout) == (0, "seeded\n"), greeting.stderr
        return True

    # The server starts when its host key is made, which may be after the login appears.
    until(greeted, timeout=90, ignore=(OSError,))
    stranger = running.ssh(new_key(tmp_path / "other"), "true")
    assert stranger.returncode == 255
    assert "Permission denied (publickey)" in stranger.stderr


def test_http_answers_with_name_and_addresses(running: Running) -> None:
    """Port 80 tells who the guest is."""
    with urllib.request.urlopen(f"http://127.0.0.1:{running.http_port}/", timeout=20) as answer:
        page = answer.read().decode().splitlines()
    assert "hostname: seeded" in page
    assert "address: net0 10.0.2.77/24" in page


def test_guest_agent_answers_and_runs_commands(running: Running) -> None:
    """The QEMU guest agent is there, knows the addresses and runs programs."""
    with JsonSocket(running.agent) as agent:
        agent.ask("guest-ping")
        interfaces = agent.ask("guest-network-get-interfaces")
        request = {"path": "/bin/sh", "arg": ["-c", "echo out; exit 3"], "capture-output": True}
        started = agent.ask("guest-exec", **request)

        def ended() -> dict[str, object]:
            status: dict[str, object] = agent.ask("guest-exec-status", pid=started["pid"])
            assert status["exited"]
            return status

        status = until(ended, timeout=90)
    found = {entry["ip-address"] for nic in interfaces for entry in nic.get("ip-addresses", [])}
    assert "10.0.2.77" in found
    assert status["exitcode"] == 3
    assert base64.b64decode(str(status["out-data"])) == b"out\n"


def test_script_and_dhcp_on_a_scsi_disk(tmp_path: Path, tiny_image: Path) -> None:
    """Root and seed on virtio-scsi: the parts of a MIME message run, DHCP gives the address."""
    script = '#!/bin/bash -e\necho "script of $(hostname) in $(pwd)"\nexit 7\n'
    message = MIMEMultipart()
    message.attach(
        MIMEText(cloud_config(runcmd=["echo after the script"]), "cloud-config", "utf-8")
    )
    message.attach(MIMEText(script, "x-shellscript", "us-ascii"))
    seed = make_seed(
        tmp_path / "seed.iso", meta_data={"local-hostname": "b"}, user_data=message.as_string()
    )
    with Guest(
        tiny_image,
        tmp_path,
        *("-drive", f"if=none,id=seed,file={seed},format=raw,readonly=on"),
        *("-device", "scsi-cd,drive=seed"),
        disk=("-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=root,serial=root1"),
        network=("-nic", "user,model=virtio-net-pci"),
    ) as guest:
        guest.login()
        guest.wait_user_data()
        assert guest.run("cat /var/log/cloud-init-output.log").splitlines() == [
            "script of b in /",
            "after the script",
            "tiny: user-data finished with exit status 7",
        ]
        assert " 10.0.2.15/24 " in guest.run("ip addr show dev eth0")
        partition = "/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_root1-part1"
        assert guest.run(f"readlink {partition}") == "/dev/sda1\n"


def test_hot_plug_puts_devices_to_use(tmp_path: Path, tiny_image: Path) -> None:
    """A NIC gets an address, a disk a name, memory and CPUs grow: all while the guest runs."""
    volume = tmp_path / "volume.img"
    volume.write_bytes(bytes(1 << 20))
    ports = [("-device", f"pcie-root-port,id=port{n},chassis={n}") for n in (1, 2)]
    with Guest(
        tiny_image,
        tmp_path,
        *ports[0],
        *ports[1],
        *("-smp", "2", "-m", "256,maxmem=768M", "-netdev", "user,id=net2,net=10.1.1.0/24"),
        *("-drive", f"if=none,id=vol2,file={volume},format=raw"),
        *("-object", "memory-backend-ram,id=more,size=256M"),
        *("-device", "virtio-mem-pci,id=mem,memdev=more,requested-size=0"),
    ) as guest:
        guest.login()
        before = guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")
        with guest.qmp() as qmp:
            qmp.ask("device_add", driver="virtio-net-pci", netdev="net2", bus="port1", id="nic2")
            qmp.ask("device_add", driver="virtio-blk-pci", drive="vol2", bus="port2", serial="vol2")
            qmp.ask("qom-set", path="mem", property="requested-size", value=256 << 20)
        guest.run("until ip addr show dev eth0 | grep ' 10.1.1.15/24 '; do sleep 0.1; done")
        guest.run("until [ -b /dev/disk/by-id/virtio-vol2 ]; do sleep 0.1; done")
        with JsonSocket(guest.agent_path) as agent:
            for online in (False, True):
                agent.ask("guest-set-vcpus", vcpus=[{"logical-id": 1, "online": online}])
                assert guest.run("nproc") == ("2\n" if online else "1\n")

        def grown() -> bool:
            now = guest.run("awk '/MemTotal/ {print $2}' /proc/meminfo")
            return int(now) >= int(before) + 250_000

        until(grown, timeout=90)


def test_config_drive_and_power_button_on_machine_pc(tmp_path: Path, tiny_image: Path) -> None:
    """On i440FX with an IDE CD-ROM: a ConfigDrive is read, ACPI power-off ends the guest."""
    seed = make_seed(
        tmp_path / "seed.iso",
        label="config-2",
        **{"openstack/latest/meta_data.json": {"uuid": "i", "hostname": "drive"}},
    )
    with Guest(tiny_image, tmp_path, "-cdrom", str(seed), machine="pc") as guest:
        guest.wait_for("drive login:")
        with guest.qmp() as qmp:
            qmp.ask("system_powerdown")
            assert guest.wait_end(20) == 0


def test_bare_guest_reports_its_panic(tmp_path: Path, tiny_image: Path) -> None:
    """Without seed and network it has a name of its own; a panic reaches the host by pvpanic."""
    devices = ("-device", "pvpanic-pci", "-action", "panic=pause")
    with Guest(tiny_image, tmp_path, *devices) as guest:
        guest.wait_for("addresses  none")
        guest.login()
        assert guest.run("hostname") == "tiny\n"
        with guest.qmp() as qmp:
            guest.type("echo c >/proc/sysrq-trigger")
            qmp.wait_event("GUEST_PANICKED")
