"""What a pod says of itself, as the guest and the kubelet find it."""

import urllib.error
import urllib.request

import pytest

from tests.e2e.conftest import PodFactory
from virtlet.cli.playground import Playground
from virtlet.cri import api_pb2 as cri
from virtlet.host import netns


def test_names_resolver_settings_labels_and_annotations_arrive(new_pod: PodFactory) -> None:
    pod = new_pod("settings")
    # A script of the pod's own stands instead of what is generated.
    del pod.pod.annotations["VirtletCloudInitUserDataScript"]
    pod.pod.hostname = "a-name-of-its-own"
    pod.pod.labels["tier"] = "back end"
    pod.pod.annotations["example.com/note"] = "ünïcode\nand a second line"
    dns = cri.DNSConfig(
        servers=["10.96.0.10", "10.96.0.11"],
        searches=["a.test", "b.test"],
        options=["ndots:5", "timeout:2"],
    )
    pod.pod.dns_config.CopyFrom(dns)
    pod.manifest.container.annotations["io.kubernetes.container.hash"] = "cafe"
    # What restricts processes means nothing for a VM, and is in every pod of a hardened cluster.
    contexts = (
        pod.pod.linux.security_context,
        pod.manifest.container.linux.security_context,
    )
    for context in contexts:
        context.seccomp.profile_type = cri.SecurityProfile.RuntimeDefault
        context.selinux_options.level = "s0:c1,c2"
    contexts[1].apparmor.profile_type = cri.SecurityProfile.RuntimeDefault
    contexts[1].no_new_privs = True
    contexts[1].capabilities.drop_capabilities.append("ALL")
    contexts[1].masked_paths.append("/proc/kcore")
    pod = pod.up()
    pod.wait_for_console("user-data finished with exit status 0")

    command = ["/bin/sh", "-c", "hostname; cat /etc/resolv.conf"]
    request = cri.ExecSyncRequest(container_id=pod.vm, cmd=command, timeout=30)
    lines = pod.client.call("ExecSync", request).stdout.decode().splitlines()
    assert lines[0] == "a-name-of-its-own"
    assert set(lines[1:]) == {
        "nameserver 10.96.0.10",
        "nameserver 10.96.0.11",
        "search a.test b.test",
        "options ndots:5 timeout:2",
    }

    sandbox = pod.client.pod_status(pod.id)
    assert sandbox.labels == pod.pod.labels
    assert sandbox.annotations == pod.pod.annotations
    (listed,) = (p for p in pod.client.pods() if p.id == pod.id)
    assert (listed.labels, listed.annotations) == (pod.pod.labels, pod.pod.annotations)
    config = pod.config()
    assert (pod.status.labels, pod.status.annotations) == (config.labels, config.annotations)
    (container,) = (c for c in pod.client.containers() if c.id == pod.vm)
    assert (container.labels, container.annotations) == (config.labels, config.annotations)


def test_a_host_port_leads_to_the_guest_as_long_as_the_pod_is_there(
    node: Playground, new_pod: PodFactory
) -> None:
    pod = new_pod()
    pod.pod.port_mappings.add(protocol=cri.TCP, container_port=80, host_port=8098)
    pod = pod.up()
    greeting, _, _ = pod.wait_for_answer().partition("uptime")
    gateway = pod.address.rsplit(".", 1)[0] + ".1"

    def fetch() -> str:
        with urllib.request.urlopen(f"http://{gateway}:8098/", timeout=5) as reply:
            content: bytes = reply.read()
            return content.decode()

    assert greeting
    assert netns.inside(node.netns, fetch).startswith(greeting)
    pod.down()
    with pytest.raises(urllib.error.URLError):
        netns.inside(node.netns, fetch)
