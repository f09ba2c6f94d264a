"""What deploy/ has for a cluster: fields that Kubernetes knows, and the policy, by its CEL."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import pytest
import yaml
from celpy import celtypes
from celpy.adapter import json_to_cel

from tests.cluster_install.manifests import problems
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.errors import InvalidArgument
from virtlet.model.option import Annotation
from virtlet.testing.models import make_pod

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
POLICY = DEPLOY / "cluster" / "virtletadmission.yaml"
OURS = "virtlet.k8s/v1"
Document = Mapping[str, Any]


def documents(path: Path) -> list[Document]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def manifests() -> Iterator[Any]:
    """Every document for a cluster below deploy/."""
    for path in sorted(DEPLOY.rglob("*.yaml")):
        for number, one in enumerate(documents(path)):
            if isinstance(one, dict) and {"apiVersion", "kind"} <= set(one):
                name = f"{path.relative_to(DEPLOY)}-{number}-{one['kind']}"
                yield pytest.param(one, id=name)


MANIFESTS = list(manifests())


@pytest.mark.parametrize("document", MANIFESTS)
def test_every_manifest_has_the_fields_of_its_kind(document: Document) -> None:
    if document["apiVersion"].startswith(("kustomize.config.k8s.io/", "virtlet.k8s/")):
        return
    assert list(problems(document)) == []


def test_fields_that_kubernetes_does_not_know_are_found() -> None:
    document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": 5}, "spec": {"nods": []}}
    found = list(problems(document))
    assert found == ["Pod.metadata.name is no str: 5", "Pod.spec has no field nods"]


DEFINITIONS = [
    pytest.param(document.values[0], id=document.values[0]["metadata"]["name"])
    for document in MANIFESTS
    if document.values[0]["kind"] == "CustomResourceDefinition"
]


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_definition_is_named_by_its_kind_and_its_columns_are_fields(definition: Document) -> None:
    spec = definition["spec"]
    assert definition["metadata"]["name"] == f"{spec['names']['plural']}.{spec['group']}"
    (version,) = spec["versions"]
    assert f"{spec['group']}/{version['name']}" == OURS
    schema = version["schema"]["openAPIV3Schema"]
    for column in version.get("additionalPrinterColumns", ()):
        if column["jsonPath"].startswith(".metadata."):
            continue
        here = schema
        for step in column["jsonPath"].strip(".").split("."):
            here = here["properties"][step]
    assert list(_unstructured(schema, "")) == []


def _unstructured(schema: Document, where: str) -> Iterator[str]:
    """Places where a schema is not structural: an API server refuses the definition."""
    if not ("type" in schema or schema.get("x-kubernetes-int-or-string")):
        yield f"{where}: has no type"
    if "properties" in schema and "additionalProperties" in schema:
        yield f"{where}: has both properties and additionalProperties"
    for name, item in schema.get("properties", {}).items():
        yield from _unstructured(item, f"{where}.{name}")
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from _unstructured(schema[name], f"{where}.{name}")


# CEL


ENVIRONMENT = celpy.Environment()


@cache
def program(expression: str) -> Any:
    return ENVIRONMENT.program(ENVIRONMENT.compile(expression))


def evaluated(expression: str, **variables: Any) -> Any:
    return program(expression).evaluate(variables)


def test_the_definition_of_flavors_refuses_by_cel_what_a_schema_cannot_say() -> None:
    (definition,) = documents(DEPLOY / "cluster" / "virtletflavor.yaml")
    (version,) = definition["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    rules = spec["properties"]["flavor"]["x-kubernetes-validations"]

    def refusals(**flavor: Any) -> list[str]:
        jsonschema.validate({"flavor": flavor}, spec)
        it = json_to_cel(flavor)
        return [rule["message"] for rule in rules if not evaluated(rule["rule"], self=it)]

    assert refusals() == refusals(vcpus=2, extras={"gpu": 1}, disk_iops=5, disk_iops_burst=6) == []
    assert refusals(disk_iops_burst=6) == ["disk_iops_burst needs disk_iops"]
    assert refusals(disk_bandwidth_burst="1Mi") == ["disk_bandwidth_burst needs disk_bandwidth"]
    assert refusals(disk_bus="nvme", disk_iops=5) == [
        "disks with I/O limits are on scsi or virtio, not nvme"
    ]
    for extra in ("spoofing", "domain_cpu"):
        assert refusals(extras={extra: "allow"}) == [
            "extras: spoofing and domain_cpu are only for handlers of a node's configuration"
        ]


def test_the_policy_is_what_the_declarations_say() -> None:
    argv = [sys.executable, str(ROOT / "hack" / "document_admission.py")]
    made = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    assert made == POLICY.read_text(), "run `make docs`"


@cache
def shipped() -> tuple[Document, ...]:
    return tuple(documents(POLICY))


def refusals(pod: Document, *, about: str = "") -> list[str]:
    """Why the policy refuses a pod; empty where it does not, or does not ask.

    Args:
        pod: the pod.
        about: part of the validations that are evaluated.
    """
    policy, binding = shipped()
    assert binding["spec"]["policyName"] == policy["metadata"]["name"]
    it = json_to_cel(dict(pod))
    if not all(evaluated(c["expression"], object=it) for c in policy["spec"]["matchConditions"]):
        return []
    variables = celtypes.MapType()
    for one in policy["spec"]["variables"]:
        value = evaluated(one["expression"], object=it, variables=variables)
        variables[celtypes.StringType(one["name"])] = value
    found = []
    for one in policy["spec"]["validations"]:
        if about not in one["expression"]:
            continue
        if not evaluated(one["expression"], object=it, variables=variables):
            said = one.get("messageExpression")
            told = evaluated(said, object=it, variables=variables) if said else one["message"]
            found.append(str(told))
    return found


def vm_pod(annotations: Mapping[str, str] | None = None, **spec: Any) -> Document:
    container = {"name": "guest", "image": "virtlet.cloud/tiny"}
    said = {"runtimeClassName": "virtlet", "containers": [container], **spec}
    metadata = {"name": "vm", **({"annotations": annotations} if annotations else {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": said}


EXAMPLES = sorted((ROOT / "examples" / "pods").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_policy_takes_every_example(path: Path) -> None:
    (pod,) = (one for one in documents(path) if one["kind"] == "Pod")
    pod["spec"]["runtimeClassName"] = "virtlet-large"
    assert refusals(pod) == []


SECOND = {"name": "second", "image": "busybox"}
BAD: Mapping[str, tuple[Document, str]] = {
    "two-containers": (vm_pod(containers=[SECOND, SECOND]), "a VM pod has one container"),
    "sidecar": (
        vm_pod(initContainers=[{**SECOND, "restartPolicy": "Always"}]),
        "a sidecar (an init container with restartPolicy: Always) cannot run beside a VM",
    ),
    "ephemeral": (vm_pod(ephemeralContainers=[SECOND]), "an ephemeral container cannot run"),
    "hostNetwork": (vm_pod(hostNetwork=True), "take hostNetwork out of the pod"),
    "hostPID": (vm_pod(hostPID=True), "take hostPID out of the pod"),
    "hostIPC": (vm_pod(hostIPC=True), "take hostIPC out of the pod"),
    "privileged": (
        vm_pod(containers=[{**SECOND, "securityContext": {"privileged": True}}]),
        "a privileged container cannot be a VM",
    ),
    "privileged-init": (
        vm_pod(initContainers=[{**SECOND, "securityContext": {"privileged": True}}]),
        "a privileged container cannot be a VM",
    ),
    "bidirectional": (
        vm_pod(containers=[{**SECOND, "volumeMounts": [{"mountPropagation": "Bidirectional"}]}]),
        "take mountPropagation: Bidirectional out of the pod",
    ),
    "unknown": (
        vm_pod({"VirtletVCPUcount": "2", "example.com/x": "y"}),
        "annotation VirtletVCPUcount: Virtlet knows none of this name",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_the_policy_refuses_what_no_node_could_run_and_says_why(name: str) -> None:
    pod, message = BAD[name]
    (found,) = refusals(pod)
    assert message in found


@pytest.mark.parametrize("name", BAD)
def test_the_policy_leaves_pods_of_containers_alone(name: str) -> None:
    pod, _ = BAD[name]
    spec = {k: v for k, v in pod["spec"].items() if k != "runtimeClassName"}
    assert refusals({**pod, "spec": spec}) == []
    assert refusals({**pod, "spec": {**spec, "runtimeClassName": "virtletish"}}) == []


def test_the_policy_takes_pods_that_say_what_is_allowed() -> None:
    context = {"privileged": False, "runAsUser": 1000}
    container = {**SECOND, "securityContext": context, "volumeMounts": [{"name": "v"}]}
    spec = {"hostNetwork": False, "initContainers": [container], "containers": [container]}
    assert refusals(vm_pod({"example.com/x": "y"}, **spec, volumes=[{"emptyDir": {}}])) == []


@cache
def _declared() -> list[Annotation[Any]]:
    registry = discover()
    found = [a for plugin, a in Hooks(registry).annotations() if plugin in registry.builtin]
    return sorted((a for a in found if a.name.startswith("Virtlet")), key=lambda a: a.name)


VALUES = (
    *("", "0", "1", "2", "255", "256", "-1", "1.5", "x", "1Gi", "10Mi", "1e3", "5k", "1Gib"),
    *("host-model", "host-passthrough", "scsi", "nvme", "ide", "9p", "virtiofs", "nocloud"),
    *("configdrive", "plain", "base64", "configmap/a", "secret/a.b/key", "Secret/a", "pod/a"),
    *("7e57ab1e-0000-4000-8000-00000badcafe", "7e57ab1e", "a b", "../x", "true", "1000000000001"),
)


@pytest.mark.parametrize("annotation", _declared(), ids=lambda a: a.name)
def test_the_policy_refuses_no_value_that_a_node_takes(annotation: Annotation[Any]) -> None:
    """And what it refuses, it names; a node refuses more."""
    for value in VALUES:
        found = refusals(vm_pod({annotation.name: value}), about=f'"{annotation.name}"')
        try:
            annotation.of(make_pod({annotation.name: value}))
        except InvalidArgument:
            assert all(one.startswith(f"annotation {annotation.name}: must be ") for one in found)
        else:
            assert found == [], value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VirtletVCPUCount", "256"),
        ("VirtletCPUModel", "host-passthrough"),
        ("VirtletDiskDriver", "ide"),
        ("VirtletDiskIOPS", "1000000000001"),
        ("VirtletFlavor", "../x"),
        ("VirtletMaxMemory", "1Gib"),
        ("VirtletShareDriver", ""),
        ("VirtletSSHKeySource", "Secret/a"),
        ("VirtletSystemUUID", "7e57ab1e"),
    ],
)
def test_the_policy_refuses_values_by_the_annotations_name(name: str, value: str) -> None:
    (found,) = refusals(vm_pod({name: value}))
    assert found.startswith(f"annotation {name}: must be ")
