"""Images that skopeo has pushed to Debian's registry."""

import gzip
import subprocess
from pathlib import Path

import pytest
import trustme

from tests.fakes.oci_images import archive, artifact, container_disk, image, index
from tests.fakes.registry import PASSWORD, USER, docker_registry
from tests.images.disks import raw_disk, write_qcow2
from virtlet.errors import FailedPrecondition, NotFound, PermissionDenied
from virtlet.model.image import Credentials
from virtlet.model.reference import parse_reference
from virtlet.plugins.image_oci.manifests import node_platform

from .conftest import Node

DISK = raw_disk("real", 1 << 20)
PLAIN = ("--dest-tls-verify=false",)
LOGIN = (f"--dest-creds={USER}:{PASSWORD}",)


def test_images_of_every_kind_are_pulled(node: Node, tmp_path: Path) -> None:
    other = container_disk(raw_disk("other"))
    images = {
        "disk:41": container_disk(DISK),
        "index:41": index({"linux/s390x": other, node_platform(): container_disk(DISK)}),
        "artifact:41": artifact({"disk.raw": DISK}),
        "packed:41": container_disk(gzip.compress(DISK), "disk/disk.img.gz"),
    }
    with docker_registry(tmp_path / "registry") as registry:
        node.hosts(registry, f'server = "http://{registry}"\n')
        for number, (name, made) in enumerate(images.items()):
            made.push(tmp_path / f"layout{number}", f"docker://{registry}/vms/{name}", *PLAIN)
            repository = f"virtlet.cloud/{registry}/vms/{name.partition(':')[0]}"
            found = node.pull(f"virtlet.cloud/{registry}/vms/{name}")
            assert found.path.read_bytes() == DISK
            assert found.names == (f"virtlet.cloud/{registry}/vms/{name}",)
            assert found.digests == (f"{repository}@{made.digest}",)
            assert node.pull(found.digests[0]).id == found.id
            assert node.store.remove(parse_reference(found.id))
        ordinary = image([archive({"bin/sh": b"x"})])
        ordinary.push(tmp_path / "ordinary", f"docker://{registry}/apps/a:1", *PLAIN)
        assert node.pull(f"{registry}/apps/a:1").format == "squashfs"
        with pytest.raises(NotFound, match="does not have the manifest of vms/nothing"):
            node.pull(f"{registry}/vms/nothing:1")


def test_skopeos_own_forms_are_pulled(node: Node, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    with docker_registry(tmp_path / "registry") as registry:
        node.hosts(registry, f'server = "http://{registry}"\n')
        made = container_disk(DISK)
        made.push(layout, f"docker://{registry}/vms/other:oci", *PLAIN)
        for tag, options in {
            "docker": ("--format=v2s2",),
            "zstd": ("--format=oci", "--dest-compress-format=zstd"),
        }.items():
            target = f"docker://{registry}/vms/a:{tag}"
            command = ["skopeo", "--insecure-policy", "copy", *options, *PLAIN]
            subprocess.run([*command, f"oci:{layout}", target], check=True, capture_output=True)
            found = node.pull(f"{registry}/vms/a:{tag}")
            assert found.path.read_bytes() == DISK
            assert found.digests[0] != f"{registry}/vms/a@{made.digest}"


def test_a_registry_with_tls_and_a_password(node: Node, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(key))
    secret = Credentials(username=USER, password=PASSWORD)
    with docker_registry(tmp_path / "registry", secret=True, tls=(chain, key)) as registry:
        target = f"docker://{registry}/vms/a:1"
        container_disk(DISK).push(tmp_path / "layout", target, *PLAIN, *LOGIN)
        name = f"virtlet.cloud/{registry}/vms/a:1"
        with pytest.raises(FailedPrecondition, match="the certificate of .* is not trusted"):
            node.pull(name, secret)
        node.hosts(registry, 'ca = "ca.pem"\n')
        authority.cert_pem.write_to_path(str(node.certs / registry / "ca.pem"))
        assert node.pull(name, secret).path.read_bytes() == DISK
        for wrong in (Credentials(), Credentials(username=USER, password="wrong")):
            with pytest.raises(PermissionDenied, match="check the name and the image pull secret"):
                node.pull(name, wrong)
        node.hosts(registry, "skip_verify = true\n")
        assert node.pull(name, secret).path.read_bytes() == DISK


def test_a_disk_for_another_hypervisor_is_converted(node: Node, tmp_path: Path) -> None:
    qcow2, vmdk = write_qcow2(tmp_path / "x.qcow2"), tmp_path / "x.vmdk"
    subprocess.run(
        ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", qcow2, vmdk],
        check=True,
    )
    with docker_registry(tmp_path / "registry") as registry:
        node.hosts(registry, f'server = "http://{registry}"\n')
        made = container_disk(vmdk.read_bytes(), "disk/x.vmdk")
        made.push(tmp_path / "layout", f"docker://{registry}/vms/a:1", *PLAIN)
        found = node.pull(f"{registry}/vms/a:1")
        assert (found.format, found.source_format) == ("qcow2", "vmdk")
