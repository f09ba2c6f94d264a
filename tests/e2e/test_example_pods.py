"""The manifests of examples/pods, as a kubelet brings them: each is admitted, and boots."""

import base64
import json
import re
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import yaml

from tests.e2e.conftest import AS_THE_UNIT, ROOT, TINY, Pod
from tests.fakes import ceph, kubelet
from tests.fakes.api_server import CONFIGS, ApiServer, serving
from tests.fakes.image_server import Resource, image_server
from tests.fakes.kubelet import volumes
from tests.fakes.oci_images import archive, artifact, container_disk, index, regular
from tests.fakes.oci_images import image as oci_image
from tests.fakes.registry import docker_registry
from tests.polling import until
from virtlet.cli.playground import CNI_BIN_DIR, Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns
from virtlet.plugins.image_oci.manifests import node_platform

EXAMPLES = ROOT / "examples" / "pods"
NOT_HERE = ("locked-memory", "vsock")
"""What this machine lacks: CAP_SYS_RESOURCE, and the kernel's /dev/vhost-vsock. Their documents are
defined by tests/plugins/libvirt_qemu/test_passed_devices.py."""
PODS = {path.stem: path for path in sorted(EXAMPLES.glob("*.yaml")) if path.stem not in NOT_HERE}
SITE = archive(
    [
        (regular("srv/pages/index.html", 3, mode=0o644), b"new"),
        (regular("srv/pages/run", 19, mode=0o4755), b"#!/bin/sh\necho ran\n"),
        (regular("srv/node", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
        (regular("srv/link", type=tarfile.SYMTYPE, linkname="/etc"), b""),
    ]
)
"""The upper layer of an image that is mounted."""
pytestmark = pytest.mark.timeout(900)  # Its guests boot within the time of the first test.
SLOW = 8 << 20
"""Bytes of an image whose server soon sends less than it has to."""
BOOTING = 4
"""Guests that boot at once: all together would take each other's caches, and twice the time."""
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")
UNTIL_UP = "until [ -e /var/lib/cloud/instance/boot-finished ]; do sleep 0.2; done; "


@pytest.fixture(scope="module")
def examples_node() -> Iterator[Playground]:
    """A node whose settings are not the defaults."""
    directory = Path(tempfile.mkdtemp(prefix="virtlet-", dir="/var/tmp"))
    settings = {
        "fdServerSocketPath": str(directory / "launch.sock"),
        "databasePath": str(directory / "pods.db"),
        "imageDir": str(directory / "store"),
        "imageSizeLimit": "1Gi",
        "emulatorUser": "libvirt-qemu",
        "emulator": "/usr/bin/qemu-system-x86_64",
        "cgroupDriver": "cgroupfs",
        "logLevel": "debug",
        "logFormat": "text",
        "kubeconfig": str(directory / "kubeconfig"),
        "handlers": {"virtlet": {}},
        "imageRegistryConfigsDir": str(directory / "certs.d"),
        "pinnedImages": "virtlet.cloud/tiny",
        "cniPluginDir": str(directory / "cni-plugins"),
        "cephMonitors": "192.0.2.0/24",
        "imageLeastRate": "64Ki",
    }
    (directory / "cni-plugins").mkdir()
    for path in (*Path(CNI_BIN_DIR).iterdir(), ROOT / "tests/fakes/cni_meta.py"):
        (directory / "cni-plugins" / path.stem).symlink_to(path)
    with Playground(
        {"tiny": TINY, "debian": TINY, "windows": TINY},  # Debian itself boots in test_debian.py.
        subnet="10.133.0.0/16",
        settings=settings,
        directory=directory,
        wrapper=AS_THE_UNIT,
    ) as playground:
        yield playground


@pytest.fixture(scope="module")
def api(examples_node: Playground) -> ApiServer:
    """The cluster's API server, which `pods` serves."""
    made = ApiServer(namespaces={"default"})
    made.put(CONFIGS, "kube-system", "all", spec={"config": {"shareDriver": "9p", "kvm": "probe"}})
    return made


@pytest.fixture(scope="module")
def slow_pull() -> "Future[str]":
    """Gets the outcome of a pull of which little comes, and then hardly anything: what the manager
    says of it."""
    return Future()


@pytest.fixture(scope="module")
def pods(
    examples_node: Playground, api: ApiServer, slow_pull: "Future[str]"
) -> Iterator[dict[str, Pod]]:
    """A VM of every example, made and started; some boot side by side."""
    node, made = examples_node, {}
    with node.client() as client, ExitStack() as cleanup:
        netns.inside(node.netns, lambda: cleanup.enter_context(serving(node.directory, api)))
        netns.inside(node.netns, lambda: add_networks(node))
        serve_images(node, cleanup)
        cleanup.enter_context(huge_pages(320 << 20))
        key = serve_ceph(node, cleanup)
        for name, path in PODS.items():
            example = volumes.Example.read(path, name)
            if name == "ceph":
                example.objects["Secret", "ceph-vms"]["stringData"]["secret"] = key
            for (kind, of), document in example.objects.items():
                if kind == "ConfigMap":
                    api.put("configmaps", "default", of, data=document["data"])
                elif kind == "VirtletFlavor":
                    flavors = node.directory / "flavors"
                    flavors.mkdir(exist_ok=True)
                    (flavors / f"{of}.yaml").write_text(yaml.safe_dump(document))
                elif kind == "Secret":
                    data = {key: b64(text) for key, text in document["stringData"].items()}
                    api.put("secrets", "default", of, type="Opaque", data=data)
            manifest = example.manifest(node.log_root)
            dns = cri.DNSConfig()
            dns.CopyFrom(manifest.pod.dns_config)
            kubelet.complete(manifest, node.kubelet_dir)
            if example.pod["spec"].get("dnsPolicy") == "None":
                manifest.pod.dns_config.CopyFrom(dns)
            cleanup.enter_context(volumes.made(example, manifest, node.kubelet_dir))
            made[name] = Pod(node, client, manifest).up()
            if len(made) == 1:
                pull_slowly(made[name], slow_pull)
            if len(made) > BOOTING:
                run(list(made.values())[-BOOTING], "true")
        yield made
        for pod in made.values():
            pod.client.stop(pod.vm, 0)
            pod.down()
        netns.inside(node.netns, remove_networks)
        assert node.settled_leftovers() == []


@contextmanager
def huge_pages(size: int) -> Iterator[None]:
    """The node has so many bytes more on huge pages of 2 MiB, for a while."""
    before = int(HUGE_PAGES.read_text())
    wanted = before + size // (2 << 20)
    Path("/proc/sys/vm/compact_memory").write_text("1")
    HUGE_PAGES.write_text(str(wanted))
    try:
        assert int(HUGE_PAGES.read_text()) == wanted
        yield
    finally:
        HUGE_PAGES.write_text(str(before))


def pull_slowly(pod: Pod, outcome: "Future[str]") -> None:
    """Begin to pull the slow image for a pod, as a kubelet does for another container of it."""
    request = cri.PullImageRequest(
        image=cri.ImageSpec(image="web/slow.img"), sandbox_config=pod.manifest.pod
    )
    kubelet.check(request)
    call = pod.client.images.PullImage.future(request, timeout=600)
    call.add_done_callback(lambda ended: outcome.set_result(ended.details()))


def add_networks(node: Playground) -> None:
    """Two networks beside the pod's own, for the example that asks for them, as Multus has them."""
    shell("ip link add up0 type veth peer name out0; ip link set up0 up; ip link set out0 up")
    shell("ip address add 10.98.0.1/24 dev out0")
    file = node.directory / "cni/10-playground.conflist"
    network = json.loads(file.read_text())
    own, *chained = network["plugins"]
    storage = {"type": "bridge", "bridge": "storage0", "isGateway": True}
    uplink = {"type": "macvlan", "master": "up0", "mode": "bridge"}
    further = [
        plugin
        | {"ifname": name, "pod": "several-nics"}
        | {"ipam": own["ipam"] | {"ranges": [[{"subnet": subnet}]], "routes": []}}
        for plugin, name, subnet in (
            (uplink, "wire", "10.98.0.0/24"),
            (storage, "data", "10.97.0.0/24"),
        )
    ]
    meta = {
        "type": "cni_meta",
        "delegates": [own, *further],
        "status": str(node.directory / "networks.json"),
    }
    file.write_text(json.dumps(network | {"plugins": [meta, *chained]}))


def remove_networks() -> None:
    """Remove what no pod has made, and the bridge that its plugin leaves."""
    shell("ip link delete up0; ip link delete storage0")


def shell(commands: str) -> None:
    subprocess.run(["sh", "-ec", commands], check=True)


def serve_images(node: Playground, cleanup: ExitStack) -> None:
    """The images of a registry and of a web server, both in place of public ones."""

    def serve() -> None:
        registry = cleanup.enter_context(docker_registry(node.directory / "registry"))
        image = container_disk(TINY.read_bytes(), "disk/fedora.qcow2")
        target = f"docker://{registry}/containerdisks/fedora:41"
        image.push(node.directory / "layout", target, "--dest-tls-verify=false")
        site = oci_image([archive({"README": b"about", "srv/pages/index.html": b"old"}), SITE])
        target = f"docker://{registry}/examples/site:1"
        site.push(node.directory / "site-layout", target, "--dest-tls-verify=false")
        kernel = oci_image([archive(_kernel(node))])
        target = f"docker://{registry}/examples/kernel:6"
        kernel.push(node.directory / "kernel-layout", target, "--dest-tls-verify=false")
        target = f"docker://{registry}/example/appliance:1"
        appliance = index({"linux/s390x": image, node_platform(): artifact(_packed_disk(node))})
        appliance.push(node.directory / "appliance-layout", target, "--dest-tls-verify=false")
        hosts = node.directory / "certs.d" / "quay.io"
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'server = "http://{registry}"\n')
        web = cleanup.enter_context(image_server())
        web.resources["/cirros.img"] = Resource(TINY.read_bytes())
        web.resources["/slow.img"] = Resource(bytes(SLOW), drips_after=2 << 20)
        name = "download.cirros-cloud.net/0.6.3/cirros-0.6.3-x86_64-disk.img"
        translations = {
            "translations": [
                {"name": name, "url": f"{web.url}/cirros.img"},
                {"name": "web/slow.img", "url": f"{web.url}/slow.img"},
            ]
        }
        (node.directory / "images" / "web.yaml").write_text(yaml.safe_dump(translations))

    netns.inside(node.netns, serve)


def serve_ceph(node: Playground, cleanup: ExitStack) -> str:
    """A cluster with the image of the example's, which has a file system.

    Returns:
        The key of the example's user.
    """
    example = volumes.Example.read(PODS["ceph"], "ceph")
    (volume,) = example.pod["spec"]["volumes"]
    options = volume["flexVolume"]["options"]
    assert (options["user"], options["pool"]) == (ceph.USER, ceph.POOL)

    def serve() -> ceph.Cluster:
        address = options["monitor"].partition(":")[0]
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        made = cleanup.enter_context(ceph.cluster(node.directory / "ceph", options["monitor"]))
        made.make_image(options["volume"])
        return made

    return netns.inside(node.netns, serve).key


def _packed_disk(node: Playground) -> dict[str, bytes]:
    """The tiny guest's disk in another format, packed."""
    disk = node.directory / "appliance.vmdk"
    convert = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*convert, str(TINY), str(disk)], check=True)
    packed = subprocess.run(["zstd", "-q", "-1", "-c", str(disk)], check=True, capture_output=True)
    return {"appliance.vmdk.zst": packed.stdout}


def _kernel(node: Playground) -> dict[str, bytes]:
    """The tiny guest's kernel and initial RAM disk, by their paths in an image."""
    disk, found = node.directory / "boot.raw", {}
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(TINY), str(disk)], check=True)
    for name in ("vmlinuz", "initrd.img"):
        copied = ["mcopy", "-i", f"{disk}@@1M", f"::/{name}", "-"]
        found[f"boot/{name}"] = subprocess.run(copied, check=True, capture_output=True).stdout
    disk.unlink()
    return found


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def run(pod: Pod, script: str) -> list[str]:
    """The lines that a script prints in the guest, once it is up."""
    output = pod.exec("/bin/sh", "-c", UNTIL_UP + script, timeout=120)
    assert output.exit_code == 0, output.stderr
    return output.stdout.splitlines()


@pytest.mark.parametrize("name", PODS)
def test_every_example_is_admitted_and_started(pods: dict[str, Pod], name: str) -> None:
    assert pods[name].status.state == cri.CONTAINER_RUNNING


def test_settings_of_the_node_are_in_force(pods: dict[str, Pod], examples_node: Playground) -> None:
    """Paths, the emulator and its user, the cgroup driver, and the log's form and level."""
    directory, pod = examples_node.directory, pods["tiny"]
    assert (directory / "pods.db").stat().st_size > 0
    assert (directory / "launch.sock").is_socket()
    # The disk that the examples have, the one that is packed for one of them, and the images that
    # two mount as volumes.
    assert len(list((directory / "store" / "data").glob("*.json"))) == 4
    assert Path(f"/proc/{pod.emulator}/exe").readlink().name == "qemu-system-x86_64"
    assert Path(f"/proc/{pod.emulator}").stat().st_uid != 0
    driver = pod.client.call("RuntimeConfig", cri.RuntimeConfigRequest()).linux.cgroup_driver
    assert driver == cri.CGROUPFS
    lines = examples_node.log_file.read_text().splitlines()
    assert [line for line in lines if line.startswith("{")] == []
    assert any(" DEBUG " in line or " debug " in line for line in lines)


def test_status_says_which_settings_of_the_cluster_wait_for_a_restart(
    pods: dict[str, Pod],
) -> None:
    """What is as it is said already waits for nothing."""

    def waiting() -> object:
        status = pods["tiny"].client.call("Status", cri.StatusRequest(verbose=True))
        return json.loads(status.info["info"])["needsRestart"]

    mapped = {"shareDriver": "VirtletConfigMapping kube-system/all"}
    until(lambda: waiting() == mapped, "the mapped settings in the status", 120)


def test_images_come_from_a_registry_and_a_web_server(pods: dict[str, Pod]) -> None:
    """They have the names of the pods, and boot."""
    for name, part in {
        "container-disk": "virtlet.cloud/quay.io/containerdisks/fedora@sha256:",
        "web-image": "disk.img@sha256:",
        "artifact": "quay.io/example/appliance@sha256:",
    }.items():
        pod = pods[name]
        assert part in pod.status.image_ref
        run(pod, "true")


def test_a_pull_that_is_slow_is_an_event_of_its_pod_and_fails_below_the_least_rate(
    pods: dict[str, Pod], api: ApiServer, slow_pull: "Future[str]"
) -> None:
    """Nothing of it stays."""
    said = slow_pull.result(timeout=300)
    found = r"image web/slow\.img: 127\.0\.0\.1:\d+ sends less than 65536 bytes a second"
    assert re.match(found, said)
    pod = next(iter(pods.values()))
    metadata = pod.pod.metadata

    def told() -> list[tuple[str, str]]:
        posted = list(api.posted.values())
        ours = [event for event in posted if event["involvedObject"]["uid"] == metadata.uid]
        return [(e["type"], e["message"]) for e in ours if e["reason"] == "PullingImage"]

    message = "image web/slow.img: 2 MiB of 8 MiB are here"
    until(lambda: told() == [("Normal", message)], "the event of the pull", 60)
    assert list((pod.node.directory / "store").glob("part_*")) == []


def test_an_artifact_of_an_index_is_unpacked_and_converted(pods: dict[str, Pod]) -> None:
    """Its name has no prefix, and is told as it was given."""
    pod = pods["artifact"]
    request = cri.ImageStatusRequest(image=pod.image, verbose=True)
    told = pod.client.call("ImageStatus", request)
    assert list(told.image.repo_tags) == ["quay.io/example/appliance:1"]
    info = json.loads(told.info["info"])
    assert (info["format"], info["sourceFormat"]) == ("qcow2", "zstd vmdk")


def test_a_pinned_image_is_told_as_such(pods: dict[str, Pod]) -> None:
    """By whichever of its names it is asked for: all examples have the same content."""
    request = cri.ImageStatusRequest(image=pods["container-disk"].image)
    assert pods["tiny"].client.call("ImageStatus", request).image.pinned


def test_a_script_is_the_whole_user_data(pods: dict[str, Pod]) -> None:
    pods["tiny"].wait_for_console("hello from the user-data of examples/pods/tiny.yaml")
    assert run(pods["tiny"], "grep GREETING /etc/cloud/environment") != []


def test_a_machine_is_as_the_pod_says(pods: dict[str, Pod]) -> None:
    files = "/sys/block/vda/size /sys/class/dmi/id/product_uuid"
    script = f"nproc; cat {files}; grep -m1 'model name' /proc/cpuinfo"
    cpus, sectors, uuid, model = run(pods["machine"], script)
    assert (cpus, int(sectors) * 512) == ("2", 1 << 30)
    assert uuid == "7e57ab1e-0000-4000-8000-00000badcafe"
    assert "QEMU Virtual CPU" in model


def test_a_signed_guest_boots_with_secure_boot(pods: dict[str, Pod]) -> None:
    """The shim has Microsoft's signature, the loader and the kernel have Debian's."""
    pod = pods["secure-boot"]
    pod.wait_for_console("login:", timeout=300)
    assert "UEFI Secure Boot is enabled." in pod.console()
    assert "Kernel is locked down from EFI Secure Boot" in pod.console()


def test_a_machine_is_as_its_flavor_says(pods: dict[str, Pod]) -> None:
    """The file has the form of the object."""
    assert "cores=2" in " ".join(pods["flavor"].command_line)
    cpus, disk = run(pods["flavor"], "nproc; ls /sys/block | grep -x vda")
    assert (cpus, disk) == ("2", "vda")


def test_memory_is_on_huge_pages(pods: dict[str, Pod]) -> None:
    """All of the guest's, from the start; the limit of memory is the emulator's."""
    pod = pods["huge-pages"]
    status = Path(f"/proc/{pod.emulator}/status").read_text()
    assert f"HugetlbPages:\t{320 << 10:8} kB" in status
    cpus, total = run(pod, "nproc; grep MemTotal /proc/meminfo")
    assert cpus == "2"
    assert 256 << 10 < int(total.split()[1]) <= 320 << 10


def test_a_kernel_of_an_image_is_started(pods: dict[str, Pod]) -> None:
    """By copies in the VM's directory, with the flavor's command line; the guest has the image."""
    pod = pods["direct-boot"]
    words = pod.command_line
    for name in ("kernel", "initrd"):
        path = Path(words[words.index(f"-{name}") + 1])
        assert (path.parent.name, path.suffix) == (pod.vm, f".{name}")
    line, *names = run(pod, "cat /proc/cmdline; ls /kernel/boot")
    assert "said.by=flavor" in line
    assert names == ["initrd.img", "vmlinuz"]


def test_a_guest_has_the_tpm_of_its_flavor(pods: dict[str, Pod]) -> None:
    assert run(pods["tpm"], "cat /sys/class/tpm/tpm0/tpm_version_major") == ["2"]


def test_a_machine_that_can_grow_has_room_for_it(pods: dict[str, Pod]) -> None:
    arguments = " ".join(pods["growing"].command_line)
    assert "maxcpus=2" in arguments
    assert "virtio-mem" in arguments


def test_volumes_of_kubernetes_are_files_and_directories(
    pods: dict[str, Pod], examples_node: Playground
) -> None:
    pod = pods["volumes"]
    script = """
        cat /etc/settings/greeting; echo; cat /etc/settings/app.ini /etc/about/labels
        cat /etc/credentials/password; echo; stat -L -c '%a %u:%g' /etc/credentials/password
        ls /etc/everything | sort | tr '\\n' ' '; echo
        ls /node/UTC
        for at in /scratch /memory; do echo written >$at/file; done
        touch /node/file 2>/dev/null || echo read-only
        echo user:x:1000:1000::/:/bin/sh >>/etc/passwd
        echo other:x:1001:1001::/:/bin/sh >>/etc/passwd
        echo volumes:x:2000:user >>/etc/group
        for who in user other; do
            su $who -c 'cat /etc/credentials/password 2>/dev/null || printf refused'; echo
        done
        su user -c 'for at in /scratch /memory; do echo by a user >$at/by-user; done'
    """
    assert run(pod, script) == [
        "hello",
        "colour = blue",
        'tier="example"',
        "hunter2",
        "440 0:2000",  # `defaultMode: 0400`, and what `fsGroup` adds.
        "app.ini greeting password ",
        "/node/UTC",
        "read-only",
        "hunter2",
        "refused",
    ]
    directory = examples_node.kubelet_dir / pod.pod.metadata.uid / "volumes/kubernetes.io~empty-dir"
    for name in ("scratch", "memory"):
        assert (directory / name / "file").read_text() == "written\n"
        # The guest's users have their own numbers in a directory that is shared over virtiofs.
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o2777
        for file, owner in (("file", 0), ("by-user", 1000)):
            found = (directory / name / file).stat()
            assert (found.st_uid, found.st_gid) == (owner, 2000)


def test_an_image_is_a_volume(pods: dict[str, Pod], examples_node: Playground) -> None:
    pod = pods["volumes"]
    script = """
        until grep -q " /pages squashfs" /proc/mounts; do sleep 0.2; done
        cat /site/README; echo; cat /site/srv/pages/index.html; echo; cat /pages/index.html; echo
        ls /site/srv | tr '\\n' ' '; echo; ls /pages | tr '\\n' ' '; echo
        for at in /site /pages; do touch $at/file 2>/dev/null || echo read-only; done
        /pages/run 2>/dev/null || echo not executed
        grep -c ' /run/virtlet-volume' /proc/mounts
        grep ' /site ' /proc/mounts | tr , '\\n' | grep '^no[des]' | sort | tr '\\n' ' '
    """
    assert run(pod, script) == [
        *("about", "new", "new", "link pages ", "index.html run ", "read-only", "read-only"),
        *("not executed", "0", "nodev noexec nosuid "),
    ]
    mounts = [mount for mount in pod.status.mounts if mount.HasField("image")]
    name = "virtlet.cloud/quay.io/examples/site:1"
    assert [mount.image.user_specified_image for mount in mounts] == [name, name]
    assert [mount.image_sub_path for mount in mounts] == ["", "srv/pages"]
    # It stays while the VM uses it, and is gone from the lists.
    image = mounts[0].image.image
    assert image in {
        image.id for image in pod.client.call("ListImages", cri.ListImagesRequest()).images
    }
    spec = cri.ImageSpec(image=image)
    pod.client.call("RemoveImage", cri.RemoveImageRequest(image=spec))
    assert pod.client.image_id(spec) == ""
    assert list((examples_node.directory / "store/data").glob(image.removeprefix("sha256:")))


def test_claims_are_a_disk_and_directories(pods: dict[str, Pod], examples_node: Playground) -> None:
    pod = pods["claims"]
    script = """
        until [ -b /dev/data ]; do sleep 0.2; done
        printf 'on the disk' | dd of=/dev/data conv=notrunc,fsync 2>/dev/null; head -c 11 /dev/data
        echo; echo in the file >/files/file; echo for a while >/cache/file
    """
    assert run(pod, script) == ["on the disk"]
    directory = examples_node.kubelet_dir / pod.pod.metadata.uid / "volumes/kubernetes.io~csi"
    assert (directory / "files/file").read_text() == "in the file\n"
    assert (directory / "cache/file").read_text() == "for a while\n"


def test_a_block_volume_is_a_disk(pods: dict[str, Pod]) -> None:
    assert run(pods["block-volume"], "until [ -b /dev/data ]; do sleep 0.2; done") == []


def test_a_root_disk_may_be_a_volume(pods: dict[str, Pod]) -> None:
    """The guest sees the volume's size, less what is kept in front of the disk."""
    (sectors,) = run(pods["persistent-root"], "cat /sys/block/sda/size")
    assert volumes.DEVICE_SIZE - (8 << 20) < int(sectors) * 512 < volumes.DEVICE_SIZE


def test_an_empty_dir_may_be_a_disk(pods: dict[str, Pod]) -> None:
    mounted = "until grep ' /var/lib/scratch ext4' /proc/mounts; do sleep 0.2; done"
    script = f"{mounted} >/dev/null; df -k /var/lib/scratch | tail -n 1"
    (line,) = run(pods["empty-dir-disk"], script)
    assert int(line.split()[1]) > 4 << 20


@pytest.mark.parametrize(("name", "path"), [("flexvolume", "/data"), ("csi-volume", "/scratch")])
def test_a_volume_of_our_drivers_is_a_disk(pods: dict[str, Pod], name: str, path: str) -> None:
    mounted = f"until grep ' {path} ext4' /proc/mounts; do sleep 0.2; done"
    (line,) = run(pods[name], f"{mounted}; echo written >{path}/file")
    assert line.startswith("/dev/sd")


def test_an_image_of_a_ceph_cluster_is_a_disk(pods: dict[str, Pod]) -> None:
    """The key is the Secret's, and is in no option of the pod."""
    mounted = "until grep ' /data ext4' /proc/mounts; do sleep 0.2; done"
    (line,) = run(pods["ceph"], f"{mounted}; echo written >/data/file; sync")
    assert line.startswith("/dev/sd")


def test_the_network_is_as_the_pod_says(pods: dict[str, Pod]) -> None:
    pod = pods["network"]
    lines = run(pod, "hostname; cat /etc/resolv.conf; ip -4 -o addr show eth0")
    assert lines[0] == "a-name-of-its-own"
    assert {"nameserver 10.96.0.10", "search example.com", "options ndots:2"} <= set(lines)
    assert f" {pod.address}/" in lines[-1]


def test_an_interface_may_stay_as_cni_made_it(
    pods: dict[str, Pod], examples_node: Playground
) -> None:
    """It has its address, and the guest reaches the node with it."""
    pod = pods["redirected-nic"]
    command = ("nsenter", f"--net={examples_node.data_dir / 'run' / 'netns' / pod.id}")
    show = (*command, "ip", "-details", "address", "show", "dev", "eth0")
    shown = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    assert f"inet {pod.address}/" in shown
    assert "bridge_slave" not in shown
    gateway = "$(ip -4 route show default | cut -d ' ' -f 3)"
    assert run(pod, f"ping -c 1 -W 5 {gateway} > /dev/null && echo reached") == ["reached"]


def test_further_networks_are_nics_as_the_pod_names_them(pods: dict[str, Pod]) -> None:
    """By names and in the order of its annotation; the guest reaches the node by each."""
    script = "ip -4 -o address show scope global | awk '{print $2, $4}'"
    lines = [line.split() for line in run(pods["several-nics"], script)]
    assert [name for name, _ in lines] == ["eth0", "data", "wire"]
    assert [address for _, address in lines[1:]] == ["10.97.0.2/24", "10.98.0.2/24"]
    reach = "ping -c 1 -W 5 10.97.0.1 && ping -c 1 -W 5 10.98.0.1"
    assert run(pods["several-nics"], f"({reach}) > /dev/null && echo reached") == ["reached"]


def test_cloud_init_gets_what_the_pod_says(pods: dict[str, Pod]) -> None:
    pod = pods["cloud-config"]
    lines = run(pod, "hostname; cat /etc/motd; tail -n 1 /root/.ssh/authorized_keys")
    assert lines[:2] == ["named-by-meta-data", "welcome"]
    assert lines[2].endswith("you@example.com")
    pod.wait_for_console("user-data of examples/pods/cloud-config.yaml")


def test_user_data_keys_and_files_come_from_objects(pods: dict[str, Pod]) -> None:
    pod = pods["objects"]
    script = "cat /etc/app/token; echo; stat -c %a /etc/app/token; cat /root/.ssh/authorized_keys"
    token, mode, key = run(pod, script)
    assert (token, mode) == ("hunter2", "600")
    assert key.endswith("you@example.com")
    pod.wait_for_console("user-data of a ConfigMap")


def test_a_whole_document_comes_from_an_object(pods: dict[str, Pod]) -> None:
    assert run(pods["object-document"], "cat /etc/from-document") == ["a whole document"]


def test_disks_have_the_limits_of_the_pod(pods: dict[str, Pod], examples_node: Playground) -> None:
    """In the document that libvirt has of the VM, for each of its disks."""
    name = str(UUID(pods["disks"].vm))
    documents = examples_node.data_dir.glob("libvirt/etc/qemu/*.xml")
    (document,) = (text for path in documents if name in (text := path.read_text()))
    for element, value in {
        "total_iops_sec": 2000,
        "total_iops_sec_max": 4000,
        "total_bytes_sec": 50 << 20,
        "total_bytes_sec_max": 200 << 20,
    }.items():
        assert f"<{element}>{value}</{element}>" in document


# Its firmware takes minutes beside as many other guests: it is looked at last.
@pytest.mark.timeout(900)
def test_a_machine_for_windows_is_as_its_flavor_says(pods: dict[str, Pod]) -> None:
    """A Linux boots on it, as far as secure boot lets its drivers."""
    pod = pods["windows"]
    arguments = " ".join(pod.command_line)
    for word in ("base=localtime", "virtio-vga", "tpm-crb", "hpet=off", "cores=2", "i6300esb"):
        assert word in arguments
    pod.wait_for_console("UEFI Secure Boot is enabled.", timeout=400)
    pod.wait_for_console("login:", timeout=400)
