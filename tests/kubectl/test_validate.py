"""`kubectl virtlet validate`: what a node would refuse, said without one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from virtlet.kubectl.main import group

ROOT = Path(__file__).parents[2]


def _validate(*words: str | Path, given: str = "") -> Result:
    return CliRunner().invoke(group, ["validate", *map(str, words)], input=given)


def _pod(annotations: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    vm = {"name": "vm", "image": "virtlet.cloud/tiny"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web", "annotations": annotations or {}},
        "spec": {"runtimeClassName": "virtlet", "containers": [vm], **spec},
    }


def _vm(**fields: Any) -> list[dict[str, Any]]:
    return [{"name": "vm", "image": "virtlet.cloud/tiny", **fields}]


def test_the_examples_would_be_taken() -> None:
    examples = sorted((ROOT / "examples" / "pods").glob("*.yaml"))
    # Free huge pages are looked for here, and this machine keeps none.
    said = _validate(*(path for path in examples if path.stem != "huge-pages"))
    assert said.exit_code == 0, said.output
    assert "fault " not in said.output.replace("no fault in", "")


@pytest.mark.parametrize(
    ("pod", "problem"),
    [
        (_pod({"VirtletVCPUCont": "2"}), "did you mean VirtletVCPUCount?"),
        (_pod({"VirtletVCPUCount": "many"}), "annotation VirtletVCPUCount"),
        (_pod({"VirtletVCPUCount": "4", "VirtletMaxVCPUCount": "2"}), "can have 2 at most"),
        (_pod({"VirtletEmptyDirDisks": "scratch: 1Gi"}), "no emptyDir 'scratch'"),
        (_pod(containers=_vm(resources={"limits": {"memory": "4Mi"}})), "memory limit gives"),
        (_pod(containers=_vm(resources={"limits": {"memory": "lots"}})), "'lots' is no quantity"),
        (_pod(containers=_vm(securityContext={"privileged": True})), "privileged"),
        (_pod(containers=_vm(image="virtlet.cloud/with space")), "with space"),
        (_pod(containers=_vm() * 2), "it has 2 containers"),
        (_pod(containers=[]), "it has 0 containers"),
        (_pod(containers=_vm(volumeMounts=[{"name": "x", "mountPath": "/x"}])), "no volume x"),
        (_pod(initContainers=[{"name": "log", "restartPolicy": "Always"}]), "sidecar log"),
        (_pod(ephemeralContainers=[{"name": "look"}]), "use kubectl exec"),
        (_pod(hostNetwork=True), "take hostNetwork out of the pod"),
        (_pod(containers="vm"), "no usable pod"),
        ({"kind": "Pod", "metadata": {"name": "web"}}, "'spec' is missing"),
    ],
)
def test_what_a_node_refuses_is_told(tmp_path: Path, pod: dict[str, Any], problem: str) -> None:
    file = tmp_path / "pod.yaml"
    file.write_text(yaml.safe_dump(pod))
    said = _validate(file)
    assert said.exit_code == 1, said.output
    assert problem in said.output
    assert f"fault {file}: web: " in said.output


def test_what_a_kubelet_brings_is_no_fault() -> None:
    """Volumes of all kinds, variables from elsewhere, a block device, a container before."""
    volumes = [
        {"name": "settings", "configMap": {"name": "a"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "b"}},
        {"name": "block", "persistentVolumeClaim": {"claimName": "c"}},
    ]
    mounts = [
        {"name": "settings", "mountPath": "/etc/a", "subPath": "one"},
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "data", "mountPath": "/data", "readOnly": True},
    ]
    vm = _vm(
        volumeMounts=mounts,
        volumeDevices=[{"name": "block", "devicePath": "/dev/vdb"}],
        env=[{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        envFrom=[{"secretRef": {"name": "d"}}],
    )
    before = [{"name": "before", "image": "virtlet.cloud/tiny"}]
    pod = _pod(containers=vm, volumes=volumes, initContainers=before)
    said = _validate("-", given=json.dumps(pod))
    assert said.exit_code == 0, said.output


def test_what_is_in_the_cluster_alone_is_a_note() -> None:
    pod = _pod({"VirtletFlavor": "database", "VirtletSSHKeySource": "secret/keys"})
    said = _validate("-", given=json.dumps(pod))
    assert said.exit_code == 0, said.output
    assert said.output.count("whether the cluster has it is not looked at") == 2


def test_a_flavor_that_is_given_is_looked_at(tmp_path: Path) -> None:
    spec = {"flavor": {"vcpus": 4, "max_vcpus": 4}, "allowedNamespaces": ["shop"]}
    flavor = {"apiVersion": "virtlet.k8s/v1", "kind": "VirtletFlavor", "spec": spec}
    flavor["metadata"] = {"name": "database"}
    (tmp_path / "database.yaml").write_text(yaml.safe_dump(flavor))
    given = json.dumps(_pod({"VirtletFlavor": "database"}))
    said = _validate("--flavors", tmp_path, "-", given=given)
    assert said.exit_code == 1
    assert "its namespace may not have flavor 'database'" in said.output
    given = json.dumps(_pod({"VirtletFlavor": "databases"}))
    assert (
        "there is no flavor 'databases'"
        in _validate("--flavors", tmp_path, "-", given=given).output
    )


def test_with_a_node_s_configuration_its_handlers_count(tmp_path: Path) -> None:
    config = tmp_path / "virtlet.yaml"
    config.write_text("handlers: {virtlet: {flavor: {vcpus: 2, max_vcpus: 2}}}")
    given = json.dumps(_pod({"VirtletVCPUCount": "3"}))
    said = _validate("--config", config, "-", given=given)
    assert "can have 2 at most" in said.output
    given = json.dumps(_pod(runtimeClassName="virtlet-huge"))
    said = _validate("--config", config, "-", given=given)
    assert "unknown runtime handler 'virtlet-huge'" in said.output
    config.write_text("handlers: {virtlet: [")
    said = _validate("--config", config, "-", given=given)
    assert said.exit_code == 1
    assert "fault configuration" in said.output


def test_pods_of_deployments_and_lists_are_looked_at() -> None:
    pod = _pod({"VirtletVCPUCount": "0"})
    template = {"metadata": {"annotations": pod["metadata"]["annotations"]}, "spec": pod["spec"]}
    deployment = {
        "kind": "Deployment",
        "metadata": {"name": "shop"},
        "spec": {"template": template},
    }
    job = {"jobTemplate": {"spec": {"template": template}}}
    nightly = {"kind": "CronJob", "metadata": {"name": "nightly"}, "spec": job}
    both = {"kind": "List", "items": [deployment, nightly, {"kind": "Service"}]}
    said = _validate("--json", "-", given=json.dumps(both))
    told = json.loads(said.output)
    assert told["faults"] == 2
    assert [f["check"] for f in told["findings"]] == ["-: Deployment shop", "-: CronJob nightly"]


@pytest.mark.parametrize(
    ("text", "level", "what"),
    [
        ("kind: [", "fault", "no valid YAML"),
        ("kind: Service\n---\n", "note", "holds no pods"),
        ("", "note", "holds no pods"),
        ("- 1", "note", "holds no pods"),
    ],
)
def test_a_file_without_pods_is_told(text: str, level: str, what: str) -> None:
    said = _validate("-", given=text)
    assert said.exit_code == (level == "fault")
    assert f"{level:5} -: " in said.output
    assert what in said.output


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    said = _validate(tmp_path / "none.yaml")
    assert said.exit_code == 1
    assert "No such file or directory" in said.output


def test_secrets_of_a_pod_are_not_shown() -> None:
    vm = _vm(env=[{"name": "PASSWORD", "value": 7310}])
    said = _validate("-", given=json.dumps(_pod(containers=vm)))
    assert said.exit_code == 1
    assert "put it in quotes" in said.output
    assert "7310" not in said.output
