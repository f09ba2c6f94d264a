#!/usr/bin/python3 -IS
"""A CNI meta-plugin that behaves as Multus does: it delegates to the plugins of its configuration.

    delegates  configurations, the pod's own network first; the others are net1, net2, … unless
               they say their interface as "ifname", and for all pods unless they say "pod"
    status     file that gets what Multus writes into the pod's annotation
               k8s.v1.cni.cncf.io/network-status

The result is the first delegate's, so that nobody is told of the other interfaces. DEL runs all in
reverse order and fails in the end if one failed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

command = os.environ["CNI_COMMAND"]
config = json.load(sys.stdin)
failures: list[str] = []


def delegate(number: int, plugin: dict[str, Any]) -> dict[str, Any] | None:
    """What a delegate answers; None if it failed, noted in `failures`."""
    name = plugin.get("ifname", f"net{number}") if number else os.environ["CNI_IFNAME"]
    kept = Path(config["status"]).with_name(f"{os.environ['CNI_CONTAINERID']}-{name}.json")
    whole = {**plugin, "cniVersion": config["cniVersion"], "name": f"{config['name']}-{number}"}
    if command != "ADD" and kept.exists():
        whole["prevResult"] = json.loads(kept.read_text())
    done = subprocess.run(
        [Path(os.environ["CNI_PATH"], plugin["type"])],
        input=json.dumps(whole),
        env={**os.environ, "CNI_IFNAME": name},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        failures.append(done.stdout)
        return None
    if command == "ADD":
        kept.write_text(done.stdout)
    elif command == "DEL":
        kept.unlink(missing_ok=True)
    return {"interface": name, **json.loads(done.stdout or "{}")}


def told(answer: dict[str, Any]) -> dict[str, Any]:
    """What the annotation says of an answer: the interface in the pod, and its MAC address."""
    own = answer["interface"] == os.environ["CNI_IFNAME"]
    macs = [i["mac"] for i in answer.get("interfaces", []) if i.get("sandbox") and "mac" in i]
    return {
        "name": config["name"] if own else f"default/{answer['interface']}",
        "interface": answer["interface"],
        "ips": [ip["address"].split("/")[0] for ip in answer.get("ips", [])],
        **({"mac": macs[0]} if macs else {}),
        **({"default": True} if own else {}),
        "dns": answer.get("dns", {}),
    }


if command == "VERSION":
    json.dump({"cniVersion": "1.1.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}, sys.stdout)
    sys.exit()
arguments = dict(pair.split("=", 1) for pair in os.environ["CNI_ARGS"].split(";") if pair)
numbered = [
    (number, plugin)
    for number, plugin in enumerate(config["delegates"])
    if plugin.pop("pod", None) in (None, arguments.get("K8S_POD_NAME"))
]
answers = []
for number, plugin in reversed(numbered) if command == "DEL" else numbered:
    answers.append(delegate(number, plugin))
    if failures and command != "DEL":
        break
if failures:
    sys.stdout.write(failures[0])
    sys.exit(1)
if command == "ADD":
    Path(config["status"]).write_text(json.dumps([told(a) for a in answers if a]))
    json.dump({k: v for k, v in (answers[0] or {}).items() if k != "interface"}, sys.stdout)
