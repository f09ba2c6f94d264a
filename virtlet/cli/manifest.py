"""A Kubernetes pod manifest as the CRI messages that a kubelet would make of it."""

import hashlib
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

from virtlet.cli.errors import CommandFailed
from virtlet.cri import api_pb2 as cri
from virtlet.model.quantity import parse_bytes, parse_quantity

CPU_PERIOD = 100_000
"""Microseconds; the kubelet's period."""


class BadManifest(CommandFailed):
    """The manifest cannot be a VM pod; the text says where and why."""


@frozen
class PodManifest:
    """What a manifest asks for."""

    pod: cri.PodSandboxConfig
    container: cri.ContainerConfig
    handler: str
    grace: int
    """Seconds the guest gets to power off."""


def read_manifest(path: Path, log_root: Path) -> PodManifest:
    """Read a pod manifest.

    Args:
        path: a YAML file with one object of kind Pod.
        log_root: where the pods' log directories go.

    Raises:
        BadManifest: it is not such a file.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadManifest(f"{path}: {error.strerror}") from None
    except RecursionError:
        raise BadManifest(f"{path}: nested too deeply for a pod manifest") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise BadManifest(
            f"{path}: no valid YAML{f' at line {mark.line + 1}' if mark else ''}"
        ) from None
    try:
        return _convert(document, log_root)
    except BadManifest as error:
        raise BadManifest(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BadManifest(f"{path}: no usable pod manifest: {what}") from None


def _convert(document: Any, log_root: Path) -> PodManifest:
    if not isinstance(document, dict) or document.get("kind") != "Pod":
        raise BadManifest("expected one object of kind Pod")
    meta, spec = document["metadata"], document["spec"]
    if len(spec["containers"]) != 1 or spec.get("initContainers"):
        raise BadManifest("a VM pod has exactly one container")
    container = spec["containers"][0]
    name, namespace = meta["name"], meta.get("namespace", "default")
    # A name's own uid keeps `virtlet run` of one file idempotent, as a kubelet's retry is.
    uid = meta.get("uid") or hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:32]
    labels = {
        **_strings(meta, "labels"),
        "io.kubernetes.pod.name": name,
        "io.kubernetes.pod.namespace": namespace,
        "io.kubernetes.pod.uid": uid,
    }
    dns = spec.get("dnsConfig") or {}
    namespaces = _namespaces(spec)
    privileged = (container.get("securityContext") or {}).get("privileged")
    pod = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace=namespace),
        hostname=spec.get("hostname", name),
        log_directory=str(log_root / f"{namespace}_{name}_{uid}"),
        dns_config=cri.DNSConfig(
            servers=dns.get("nameservers") or [],
            searches=dns.get("searches") or [],
            options=[_dns_option(option) for option in dns.get("options") or []],
        ),
        port_mappings=[_port(port) for port in container.get("ports") or [] if "hostPort" in port],
        labels=labels,
        annotations=_strings(meta, "annotations"),
        linux=cri.LinuxPodSandboxConfig(
            security_context=cri.LinuxSandboxSecurityContext(
                namespace_options=namespaces, privileged=privileged
            ),
            sysctls=_sysctls(spec.get("securityContext") or {}),
        ),
    )
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=container["name"]),
        image=cri.ImageSpec(image=container["image"]),
        command=container.get("command") or [],
        args=container.get("args") or [],
        envs=[_env(env) for env in container.get("env") or []],
        mounts=_mounts(spec.get("volumes") or [], container),
        labels={**labels, "io.kubernetes.container.name": container["name"]},
        log_path=f"{container['name']}/0.log",
        stdin=bool(container.get("stdin")),
        tty=bool(container.get("tty")),
        linux=cri.LinuxContainerConfig(
            resources=_resources(container.get("resources") or {}),
            security_context=cri.LinuxContainerSecurityContext(
                namespace_options=namespaces, privileged=privileged
            ),
        ),
    )
    return PodManifest(pod, config, spec.get("runtimeClassName", ""), _grace(spec))


def _string(value: Any, what: str) -> str:
    """A value that must be a string, which YAML's true and 7 are not; the API server insists too.

    It is not shown: it may be a secret.
    """
    if not isinstance(value, str):
        raise BadManifest(f"{what} is no string but {type(value).__name__}: put it in quotes")
    return value


def _strings(meta: dict[str, Any], field: str) -> dict[str, str]:
    return {
        _string(key, f"{field}: key {key!r}"): _string(value, f"{field}: {key}")
        for key, value in (meta.get(field) or {}).items()
    }


def _namespaces(spec: dict[str, Any]) -> cri.NamespaceOption:
    """What the pod shares with the node; source: the kubelet's NamespacesForPod."""
    node, pod, container = (
        cri.NamespaceMode.NODE,
        cri.NamespaceMode.POD,
        cri.NamespaceMode.CONTAINER,
    )
    processes = pod if spec.get("shareProcessNamespace") else container
    return cri.NamespaceOption(
        network=node if spec.get("hostNetwork") else pod,
        pid=node if spec.get("hostPID") else processes,
        ipc=node if spec.get("hostIPC") else pod,
    )


def _sysctls(context: dict[str, Any]) -> dict[str, str]:
    return {
        sysctl["name"]: _string(sysctl["value"], f"sysctl {sysctl['name']}")
        for sysctl in context.get("sysctls") or []
    }


def _grace(spec: dict[str, Any]) -> int:
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if type(grace) is not int or grace < 0:
        raise BadManifest(
            f"terminationGracePeriodSeconds {grace!r} must be a whole number, 0 or more"
        )
    return grace


def _resources(resources: dict[str, Any]) -> cri.LinuxContainerResources:
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, quantities in (("limits", limits), ("requests", requests)):
        for name, quantity in quantities.items():
            if parse_quantity(str(quantity)) < 0:
                raise BadManifest(f"{kind}.{name} {str(quantity)!r} is negative")
    result = cri.LinuxContainerResources()
    if "memory" in limits:
        result.memory_limit_in_bytes = parse_bytes(str(limits["memory"]))
    if "cpu" in limits:
        result.cpu_period = CPU_PERIOD
        result.cpu_quota = int(parse_quantity(str(limits["cpu"])) * CPU_PERIOD)
    if "cpu" in (requests or limits):
        cores = parse_quantity(str((requests if "cpu" in requests else limits)["cpu"]))
        result.cpu_shares = max(2, int(cores * 1024))
    return result


def _env(env: dict[str, Any]) -> cri.KeyValue:
    if "valueFrom" in env:
        raise BadManifest(f"env {env['name']}: valueFrom takes a cluster: write its value")
    value = _string(env.get("value", ""), f"env {env['name']}")
    return cri.KeyValue(key=env["name"], value=value.encode())


def _mounts(volumes: list[dict[str, Any]], container: dict[str, Any]) -> list[cri.Mount]:
    """The container's mounts; what takes a cluster or a kubelet is refused, never dropped."""
    if container.get("volumeDevices") or container.get("envFrom"):
        raise BadManifest("volumeDevices and envFrom take a cluster: `virtlet run` has none")
    paths = {volume["name"]: (volume.get("hostPath") or {}).get("path") for volume in volumes}
    mounts = []
    for mount in container.get("volumeMounts") or []:
        path = paths[mount["name"]]
        if path is None or mount.get("subPath"):
            raise BadManifest(
                f"volume {mount['name']} takes a kubelet: without one only hostPath, and no "
                "subPath, can be had"
            )
        mounts.append(
            cri.Mount(
                container_path=mount["mountPath"],
                host_path=path,
                readonly=bool(mount.get("readOnly")),
            )
        )
    return mounts


def _dns_option(option: dict[str, Any]) -> str:
    value = option.get("value")
    return option["name"] if value is None else f"{option['name']}:{value}"


def _port(port: dict[str, Any]) -> cri.PortMapping:
    return cri.PortMapping(
        protocol=port.get("protocol", "TCP"),
        container_port=port["containerPort"],
        host_port=port["hostPort"],
        host_ip=port.get("hostIP", ""),
    )
