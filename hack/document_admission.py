#!/usr/bin/env python3
"""Write deploy/cluster/virtletadmission.yaml: what an API server can refuse of VM pods, by CEL.

What annotations there are, and their values, is in the built-in plugins' declarations. `make docs`
runs it; tests/test_deploy.py fails when the file is not what this prints.
"""

import re
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover
from virtlet.core.lifecycle.pods import PREFIX
from virtlet.model.option import Annotation

HEAD = """\
# Written by `make docs` from the plugins' declarations; do not edit.
#
# Pods of a RuntimeClass named virtlet or virtlet-… that no node could run are refused when they
# are created, with what to do; containers' pods are left alone. It needs Kubernetes 1.30, and no
# webhook. A node refuses them too, and more: this is only what can be seen of the pod itself.
# Values are taken more strictly than by a node: numbers in digits, without spaces. Where plugins
# of others have annotations that begin with Virtlet, add those to the variable `known`.
"""

_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
_KEY = r"[-._A-Za-z0-9]{1,253}"
_PATTERNS = {
    "quantity": r"[0-9]+([.][0-9]+)?([eE][0-9]+|[EPTGMk]|[EPTGMK]i)?",
    "UUID": r"[0-9a-fA-F]{8}-?([0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}",
    "name of a VirtletFlavor": _NAME,
    "configmap/NAME or secret/NAME": rf"(configmap|secret)/{_NAME}",
    "configmap/NAME[/KEY] or secret/NAME[/KEY]": rf"(configmap|secret)/{_NAME}(/{_KEY})?",
    "key of a ConfigMap or Secret": _KEY,
}
"""Of whole values, by the name of their kind."""
_UNCHECKED = {
    "YAML mapping",
    "YAML mapping of emptyDirs to sizes",
    "YAML of libvirt's <cpu> element",
    'boolean (only "true" is true)',
    "one OpenSSH public key a line",
    "text",
}
"""Kinds whose values CEL cannot tell, or of which all are taken."""

_ALL = "variables.containers"
_RULES = (
    (
        "size(object.spec.containers) == 1",
        "a VM pod has one container, which is the VM: put others into pods of their own",
    ),
    (
        "!has(object.spec.initContainers) || object.spec.initContainers.all(c, "
        '!has(c.restartPolicy) || c.restartPolicy != "Always")',
        "a sidecar (an init container with restartPolicy: Always) cannot run beside a VM: put it "
        "into a pod of its own",
    ),
    (
        "!has(object.spec.ephemeralContainers) || size(object.spec.ephemeralContainers) == 0",
        "an ephemeral container cannot run beside a VM: use kubectl exec",
    ),
    *(
        (
            f"!has(object.spec.{field}) || !object.spec.{field}",
            f"a VM has a kernel of its own and cannot share the node's namespaces: take {field} "
            "out of the pod",
        )
        for field in ("hostNetwork", "hostPID", "hostIPC")
    ),
    (
        f"{_ALL}.all(c, !has(c.securityContext) || !has(c.securityContext.privileged) || "
        "!c.securityContext.privileged)",
        "a privileged container cannot be a VM: the guest is isolated from the node; take "
        "privileged out of the pod",
    ),
    (
        f"{_ALL}.all(c, !has(c.volumeMounts) || c.volumeMounts.all(m, "
        '!has(m.mountPropagation) || m.mountPropagation != "Bidirectional"))',
        "what a guest mounts never appears on the node: take mountPropagation: Bidirectional out "
        "of the pod",
    ),
)


def document() -> str:
    """The whole file."""
    registry = discover()
    declared = [
        one
        for plugin, one in Hooks(registry).annotations()
        if plugin in registry.builtin and one.name.startswith(PREFIX)
    ]
    declared.sort(key=lambda one: one.name)
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "virtlet-pods"},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    _rule("pods", "CREATE"),
                    _rule("pods/ephemeralcontainers", "UPDATE"),
                ]
            },
            "matchConditions": [
                {
                    "name": "is-a-vm",
                    "expression": "has(object.spec.runtimeClassName) && "
                    'object.spec.runtimeClassName.matches("^virtlet(-.*)?$")',
                }
            ],
            "variables": [
                {"name": "known", "expression": f"[{', '.join(map(_quoted, _names(declared)))}]"},
                {
                    "name": "annotations",
                    "expression": "has(object.metadata.annotations) ? object.metadata.annotations "
                    ": {}",
                },
                {
                    "name": "unknown",
                    "expression": "variables.annotations.filter(a, "
                    f"a.startsWith({_quoted(PREFIX)}) && !(a in variables.known))",
                },
                {
                    "name": "containers",
                    "expression": "object.spec.containers + (has(object.spec.initContainers) ? "
                    "object.spec.initContainers : [])",
                },
            ],
            "validations": [
                *({"expression": rule, "message": message} for rule, message in _RULES),
                {
                    "expression": "size(variables.unknown) == 0",
                    "messageExpression": '"annotation " + variables.unknown[0] + ": Virtlet knows '
                    'none of this name; docs/settings.md has them all"',
                },
                *_values(declared),
            ],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": "virtlet-pods"},
        "spec": {"policyName": "virtlet-pods", "validationActions": ["Deny"]},
    }
    dumped = yaml.safe_dump_all([policy, binding], sort_keys=False, width=110)
    return HEAD + dumped


def _rule(resource: str, operation: str) -> dict[str, Any]:
    return {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": [operation],
        "resources": [resource],
    }


def _names(declared: list[Annotation[Any]]) -> list[str]:
    return [one.name for one in declared]


def _values(declared: list[Annotation[Any]]) -> Iterator[dict[str, str]]:
    for one in declared:
        rule = _value_rule(one, f"variables.annotations[{_quoted(one.name)}]")
        if rule:
            yield {
                "expression": f"!({_quoted(one.name)} in variables.annotations) || {rule}",
                "message": f"annotation {one.name}: must be {one.kind.name}",
            }


def _value_rule(one: Annotation[Any], value: str) -> str:
    """CEL that holds for values of an annotation; "" for any.

    Raises:
        ValueError: the kind is neither here nor among those that are not checked.
    """
    kind = one.kind.name
    if kind in _UNCHECKED:
        return ""
    if number := re.fullmatch(r"integer (\d+)\.\.(\d+)", kind):
        low, high = number.groups()
        digits = f'{value}.matches("^[0-9]{{1,{len(high)}}}$")'
        rule = f"({digits} && int({value}) >= {low} && int({value}) <= {high})"
    elif kind in _PATTERNS:
        rule = f'{value}.matches("^{_PATTERNS[kind]}$")'
    elif re.fullmatch(r"[\w-]+( or [\w-]+)*", kind):
        rule = f"{value} in [{', '.join(map(_quoted, kind.split(' or ')))}]"
    else:
        raise ValueError(f"{one.name}: say how values of kind {kind!r} look, or that CEL cannot")
    return rule if not _takes(one, "") else f'{value} == "" || {rule}'


def _takes(one: Annotation[Any], text: str) -> bool:
    try:
        one.kind.parse(text)
    except ValueError:
        return False
    return True


def _quoted(text: str) -> str:
    return f'"{text}"'


if __name__ == "__main__":
    sys.stdout.write(document())
