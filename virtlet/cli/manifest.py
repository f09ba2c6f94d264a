"""A Kubernetes pod manifest as the CRI messages that a kubelet would make of it."""

import hashlib
from pathlib import Path
from typing import Any

from attrs import frozen

from virtlet.cli import kubelet
from virtlet.cli.ending import CommandFailed
from virtlet.cri import api_pb2 as cri
from virtlet.model.bounded_yaml import load_documents
from virtlet.model.plain import UnquotedError
from virtlet.model.quantity import parse_quantity

_PROPAGATION = {
    "None": cri.MountPropagation.PROPAGATION_PRIVATE,
    "HostToContainer": cri.MountPropagation.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": cri.MountPropagation.PROPAGATION_BIDIRECTIONAL,
}


class BadManifest(CommandFailed):
    """The manifest cannot be a VM pod; the text says where and why."""


@frozen
class PodManifest:
    """What a manifest asks for."""

    pod: cri.PodSandboxConfig
    container: cri.ContainerConfig
    """Its image is named as in the manifest; see `attempt` for what is sent."""
    handler: str
    grace: int
    """Seconds the guest gets to power off."""
    pull_policy: str = "Always"

    def image(self) -> cri.ImageSpec:
        """The image as a kubelet asks for it before there is a container."""
        name = kubelet.image_name(self.container.image.image)
        return cri.ImageSpec(image=name, annotations=self.pod.annotations)

    def attempt(self, number: int, image_id: str) -> cri.ContainerConfig:
        """The container as a kubelet asks for it, with the image by its id.

        Args:
            number: how many attempts there were before.
            image_id: as PullImage or ImageStatus answered.
        """
        config = cri.ContainerConfig()
        config.CopyFrom(self.container)
        config.metadata.attempt = number
        config.image.CopyFrom(
            cri.ImageSpec(image=image_id, user_specified_image=self.container.image.image)
        )
        config.annotations["io.kubernetes.container.restartCount"] = str(number)
        config.log_path = f"{config.metadata.name}/{number}.log"
        return config


def read_manifest(path: Path, log_root: Path) -> PodManifest:
    """Read a pod manifest.

    Args:
        path: a YAML file with one object of kind Pod.
        log_root: where the pods' log directories go.

    Raises:
        BadManifest: it is not such a file.
    """
    try:
        document = _one_document(path.read_text())
        seen = path.stat().st_mtime_ns
    except OSError as error:
        raise BadManifest(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadManifest(f"{path}: is not UTF-8 text") from None
    except (BadManifest, UnquotedError) as error:
        raise BadManifest(f"{path}: {error}") from None
    try:
        return pod_manifest(document, log_root, seen)
    except BadManifest as error:
        raise BadManifest(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise BadManifest(f"{path}: no usable pod manifest: {what}") from None


def _one_document(text: str) -> Any:
    """The one document of a file, which may have empty ones beside it."""
    found = [document for document in load_documents(text) if document is not None]
    if len(found) > 1:
        kinds = [str(d.get("kind")) if isinstance(d, dict) else "no object" for d in found]
        raise BadManifest(
            f"holds {len(found)} documents ({', '.join(kinds)}), and `virtlet run` takes one: "
            "write the Pod into a file of its own"
        )
    return found[0] if found else None


def pod_manifest(document: Any, log_root: Path, seen: int = 0) -> PodManifest:
    """What a manifest's one document asks for.

    Args:
        document: of kind Pod.
        log_root: where the pods' log directories go.
        seen: when it was written, in nanoseconds of Unix time.

    Raises:
        BadManifest: it is not a pod, or a pod that cannot be a VM.
        KeyError, TypeError, AttributeError, ValueError: it is not a usable pod.
    """
    if not isinstance(document, dict) or document.get("kind") != "Pod":
        raise BadManifest("expected one object of kind Pod")
    meta, spec = document["metadata"], document["spec"]
    if len(spec["containers"]) != 1 or spec.get("initContainers"):
        raise BadManifest("a VM pod has exactly one container")
    container = spec["containers"][0]
    _check_quantities(container.get("resources") or {})
    name, namespace = meta["name"], meta.get("namespace", "default")
    # A name's own uid keeps `virtlet run` of one file idempotent, as a kubelet's retry is.
    uid = meta.get("uid") or hashlib.sha256(f"{namespace}/{name}".encode()).hexdigest()[:32]
    labels = {
        "io.kubernetes.pod.name": name,
        "io.kubernetes.pod.namespace": namespace,
        "io.kubernetes.pod.uid": uid,
    }
    pod = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name=name, uid=uid, namespace=namespace),
        hostname=kubelet.host_name(spec.get("hostname", name)),
        log_directory=str(log_root / f"{namespace}_{name}_{uid}"),
        dns_config=kubelet.dns(spec),
        port_mappings=[_port(port) for port in container.get("ports") or []],
        labels={**_strings(meta, "labels"), **labels},
        annotations={**_strings(meta, "annotations"), **kubelet.pod_annotations(seen)},
        linux=cri.LinuxPodSandboxConfig(
            security_context=kubelet.sandbox_security(spec, container),
            sysctls=_sysctls(spec.get("securityContext") or {}),
            overhead=kubelet.overhead(spec),
            resources=kubelet.pod_resources(container),
        ),
    )
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name=container["name"]),
        image=cri.ImageSpec(image=container["image"]),
        command=container.get("command") or [],
        args=container.get("args") or [],
        working_dir=container.get("workingDir") or "",
        envs=[_env(env) for env in container.get("env") or []],
        mounts=_mounts(spec.get("volumes") or [], container),
        labels={**labels, "io.kubernetes.container.name": container["name"]},
        annotations=kubelet.container_annotations(container, _grace(spec)),
        log_path=f"{container['name']}/0.log",
        stdin=bool(container.get("stdin")),
        stdin_once=bool(container.get("stdinOnce")),
        tty=bool(container.get("tty")),
        linux=cri.LinuxContainerConfig(
            resources=kubelet.container_resources(container),
            security_context=kubelet.container_security(spec, container),
        ),
    )
    return PodManifest(
        pod,
        config,
        spec.get("runtimeClassName", ""),
        _grace(spec),
        kubelet.pull_policy(container),
    )


def _string(value: Any, what: str) -> str:
    """A value that must be a string, which YAML's true and 7 are not; the API server insists too.

    It is not shown: it may be a secret.
    """
    if not isinstance(value, str):
        raise BadManifest(f"{what} is not a string but {type(value).__name__}: put it in quotes")
    return value


def _strings(meta: dict[str, Any], field: str) -> dict[str, str]:
    return {
        _string(key, f"{field}: key {key!r}"): _string(value, f"{field}: {key}")
        for key, value in (meta.get(field) or {}).items()
    }


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


def _check_quantities(resources: dict[str, Any]) -> None:
    for kind in ("limits", "requests"):
        for name, quantity in (resources.get(kind) or {}).items():
            if parse_quantity(str(quantity)) < 0:
                raise BadManifest(f"{kind}.{name} {str(quantity)!r} is negative")


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
                propagation=_PROPAGATION[mount.get("mountPropagation", "None")],
            )
        )
    return mounts


def _port(port: dict[str, Any]) -> cri.PortMapping:
    return cri.PortMapping(
        protocol=port.get("protocol", "TCP"),
        container_port=port["containerPort"],
        host_port=port.get("hostPort", 0),
        host_ip=port.get("hostIP", ""),
    )
