"""What a pod says of itself, as the guest and the kubelet find it."""

from tests.e2e.conftest import PodFactory
from virtlet.cri import api_pb2 as cri


def test_names_resolver_settings_labels_and_annotations_arrive(new_pod: PodFactory) -> None:
    pod = new_pod("settings")
    # A script of the pod's own stands instead of what is generated.
    del pod.pod.annotations["VirtletCloudInitUserDataScript"]
    pod.pod.hostname = "a-name-of-its-own"
    pod.pod.labels["tier"] = "back end"
    pod.pod.annotations["example.com/note"] = "ünïcode\nand a second line"
    dns = pod.pod.dns_config
    dns.servers.extend(["10.96.0.10", "10.96.0.11"])
    dns.searches.extend(["a.test", "b.test"])
    dns.options.extend(["ndots:5", "timeout:2"])
    pod.manifest.container.labels["app"] = "tiny"
    pod.manifest.container.annotations["io.kubernetes.container.hash"] = "cafe"
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
    config = pod.manifest.container
    assert (pod.status.labels, pod.status.annotations) == (config.labels, config.annotations)
    (container,) = (c for c in pod.client.containers() if c.id == pod.vm)
    assert (container.labels, container.annotations) == (config.labels, config.annotations)
