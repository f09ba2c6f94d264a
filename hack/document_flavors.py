#!/usr/bin/env python3
"""Write docs/flavors.md from the tables of handlers' and flavors' keys.

`make docs` runs it; tests/test_docs.py fails when the file is not what this prints.
"""

import sys
from collections.abc import Mapping
from typing import Any

from virtlet.core.hooks.profiles import KEYS as HANDLER_KEYS
from virtlet.model.flavor import Flavor
from virtlet.plugins.flavors.flavor_keys import KEYS
from virtlet.plugins.flavors.named import SPEC

HEAD = """\
# Flavors

Written by `make docs` from the code; do not edit.

The machine of a pod's VMs comes from, the later wins:

1. the defaults;
2. `flavor:` of the pod's runtime handler, in the node's configuration;
3. a VirtletFlavor, key by key (`extras` name by name): the one that the annotation
   `VirtletFlavor` names, else the one that has the handler among its `handlers`;
4. the pod's annotations, unless the VirtletFlavor is `fixed`; the memory limit of the container.

A scheduler knows nothing of flavors: it counts the container's requests and limits. Give pods
limits that fit their flavor.

## VirtletFlavors

```yaml
{example}```

Apply `deploy/cluster/virtletflavor.yaml` (the definition) and `deploy/cluster/rbac.yaml`, and
[give the manager access](node.md#objects-of-the-cluster). `kubectl get virtletflavors` shows
them, with `-o wide` their descriptions too. Without the API server: the same document as a file,
one in each, in the directory `flavorsDir` (/etc/virtlet/flavors), as `NAME.yaml`. Files are read
again when they change.

| of `spec` | |
|---|---|
"""

RULES = """
- **A change is for new pods.** A pod keeps the machine settings that it began with, also when its
  VM is made again or resized. Running VMs are never touched.
- **Of one name** the node's file counts, then the object. **Of one handler** files come first, in
  the order of their names, then the oldest object. The log names what does not count, and what
  claims a handler that this node does not serve.
- **What is wrong** (an unknown key, an impossible value) is in the node's log with its name; it
  keeps its last valid meaning on nodes that knew one, and other flavors are not disturbed.
- **A pod that names an unknown flavor**, or one that its namespace may not have, is refused with
  those that it may use.
- **The API server goes away:** the last known flavors stay in force, from a copy on disk
  (`plugins/flavors/objects.json`) also after a restart. A manager that has never reached the
  server has its pods wait for it, except those that have a flavor of the node's files. Without
  the definition or the right to read there are no objects, and pods run as if there were none.
- **Who may write VirtletFlavors** decides what any pod of the allowed namespaces costs a node,
  and whether guests may run VMs of their own (`nested`). What reaches beyond a VM, `spoofing`, is
  the node configuration's alone.

## Keys of a handler

In the node's configuration, below `handlers: {NAME: …}`.
[hooks.md](hooks.md#which-plugins-serve-a-pod) has more.

| key | |
|---|---|
"""

FLAVOR = """
## Keys of a flavor

Of a handler's `flavor:` and a VirtletFlavor's `spec.flavor`.

| key | value | default | |
|---|---|---|---|
"""

EXAMPLE = """\
apiVersion: virtlet.k8s/v1
kind: VirtletFlavor
metadata: {name: database}
spec:
  description: Fast disks, two cores of a socket
  handlers: [virtlet-large]
  allowedNamespaces: [shop, team-*]
  flavor: {vcpus: 4, topology: {cores: 2}, memory: 8Gi, disk_bus: virtio, disk_iops: 5000}
"""


def page() -> str:
    """The whole page."""
    spec = "".join(f"| `{key}` | {text} |\n" for key, text in SPEC.items())
    handler = "".join(f"| `{key}` | {text} |\n" for key, text in HANDLER_KEYS.items())
    flavor = "".join(
        f"| `{name}` | {_value(key.schema)} | {_default(name)} | {key.help} |\n"
        for name, key in KEYS.items()
    )
    return HEAD.replace("{example}", EXAMPLE) + spec + RULES + handler + FLAVOR + flavor


def _value(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if "x-kubernetes-int-or-string" in schema:
        return "quantity"
    kind = {"string": "word", "object": "mapping"}.get(schema["type"], schema["type"])
    if "minimum" in schema:
        return f"{kind} {schema['minimum']} to {schema['maximum']}"
    return str(kind)


def _default(name: str) -> str:
    if name == "topology":
        return ""
    value = getattr(Flavor(), name)
    if KEYS[name].schema.get("x-kubernetes-int-or-string") and value:
        return f"`{value >> 20}Mi`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value else ""


if __name__ == "__main__":
    sys.stdout.write(page())
