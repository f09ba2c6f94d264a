"""CRI messages to our model, with every check that needs no state.

Source of the fields' meaning: the CRI v1 definition in proto/.
"""

from collections.abc import Sequence
from pathlib import Path

from virtlet.core.cri import fields
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument
from virtlet.host import cdi, cpus
from virtlet.model.image import Credentials
from virtlet.model.plain import quote
from virtlet.model.pod import DnsConfig, PodConfig, PodMetadata, PortMapping
from virtlet.model.resources import Resources
from virtlet.model.vm import Device, Mount, VmConfig, VmMetadata


def required_id(value: str, what: str) -> str:
    """An id that a request must carry.

    Raises:
        InvalidArgument: it is empty.
    """
    if not value:
        raise InvalidArgument(f"the request names no {what}")
    return value


def pod_config(message: cri.PodSandboxConfig) -> PodConfig:
    """A pod as the kubelet asks for it.

    Raises:
        InvalidArgument: a required field is missing or a value cannot be.
    """
    meta = message.metadata
    _check_security(message.linux.security_context)
    return PodConfig(
        metadata=PodMetadata(
            name=fields.name(meta.name, "metadata.name"),
            uid=fields.name(meta.uid, "metadata.uid"),
            namespace=fields.name(meta.namespace, "metadata.namespace"),
            attempt=meta.attempt,
        ),
        hostname=fields.host_name(message.hostname, "hostname"),
        log_directory=fields.log_directory(message.log_directory),
        dns=DnsConfig(
            servers=tuple(message.dns_config.servers),
            searches=tuple(message.dns_config.searches),
            options=tuple(message.dns_config.options),
        ),
        port_mappings=tuple(
            _port_mapping(mapping, f"port_mappings[{n}]")
            for n, mapping in enumerate(message.port_mappings)
        ),
        labels=fields.text_map(message.labels, "labels"),
        annotations=fields.text_map(message.annotations, "annotations"),
        cgroup_parent=fields.cgroup_parent(message.linux.cgroup_parent),
        sysctls=dict(message.linux.sysctls),
        overhead=resources(message.linux.overhead, "linux.overhead"),
        resources=resources(message.linux.resources, "linux.resources"),
    )


def vm_config(
    message: cri.ContainerConfig, cdi_directories: Sequence[Path] = cdi.DIRECTORIES
) -> VmConfig:
    """A container as the kubelet asks for it, with what its CDI devices bring.

    Args:
        message: what is asked for.
        cdi_directories: with the node's CDI specs.

    Raises:
        InvalidArgument: a required field is missing or a value cannot be.
        FailedPrecondition: the node has no such CDI device.
    """
    image = message.image.image_ref or message.image.image
    if not image:
        raise InvalidArgument("config.image.image is empty: the container needs an image")
    if message.linux.security_context.privileged:
        raise InvalidArgument(
            "a privileged container cannot be a VM: the guest is isolated from the node; take "
            "`privileged` out of the pod"
        )
    _check_namespaces(message.linux.security_context.namespace_options)
    _check_user(message.linux.security_context)
    brought = cdi.resolve([device.name for device in message.CDI_devices], cdi_directories)
    return VmConfig(
        metadata=VmMetadata(
            name=fields.name(message.metadata.name, "metadata.name"),
            attempt=message.metadata.attempt,
        ),
        image=image,
        user_image=message.image.user_specified_image,
        command=tuple(message.command),
        args=tuple(message.args),
        working_dir=message.working_dir,
        envs=tuple(
            (
                fields.environment_name(env.key),
                fields.environment_value(env.value, env.key),
            )
            for env in message.envs
        )
        + brought.envs,
        mounts=(*map(_mount, message.mounts), *brought.mounts),
        devices=tuple(dict.fromkeys((*map(_device, message.devices), *brought.devices))),
        labels=fields.text_map(message.labels, "labels"),
        annotations=fields.text_map(message.annotations, "annotations"),
        log_path=fields.log_path(message.log_path),
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        resources=resources(message.linux.resources, "linux.resources"),
    )


def resources(message: cri.LinuxContainerResources, field: str) -> Resources:
    """Resources in our terms.

    Args:
        message: what is asked for.
        field: where in the request it stands, for messages.

    Raises:
        InvalidArgument: a value is one that no VM on any node can have.
    """
    for name, lowest in (
        ("cpu_shares", 0),
        ("memory_limit_in_bytes", 0),
        # The kubelet's -1 is for any amount of swap.
        ("memory_swap_limit_in_bytes", -1),
    ):
        value = getattr(message, name)
        if value < lowest:
            raise InvalidArgument(
                f"{field}.{name} is negative: {value}; leave it out for no such limit"
            )
    if not -1000 <= message.oom_score_adj <= 1000:
        raise InvalidArgument(
            f"{field}.oom_score_adj {message.oom_score_adj} must be from -1000 to 1000"
        )
    cpus.check_time(message.cpu_quota, message.cpu_period, field)
    return Resources(
        cpu_period=message.cpu_period,
        # The kubelet writes -1 for "no quota".
        cpu_quota=max(message.cpu_quota, 0),
        cpu_shares=message.cpu_shares,
        memory_limit=message.memory_limit_in_bytes,
        memory_swap_limit=max(message.memory_swap_limit_in_bytes, 0),
        oom_score_adj=message.oom_score_adj,
        cpuset_cpus=fields.listed(message.cpuset_cpus, f"{field}.cpuset_cpus", cpus.parse_list),
        cpuset_mems=fields.listed(message.cpuset_mems, f"{field}.cpuset_mems", cpus.parse_list),
        hugepage_limits={limit.page_size: limit.limit for limit in message.hugepage_limits},
        unified=dict(message.unified),
    )


def credentials(message: cri.AuthConfig) -> Credentials:
    """Registry credentials in our terms."""
    return Credentials(
        username=message.username,
        password=message.password,
        auth=message.auth,
        server_address=message.server_address,
        identity_token=message.identity_token,
        registry_token=message.registry_token,
    )


def pulling_pod(message: cri.PodSandboxConfig) -> PodMetadata | None:
    """The pod that an image is pulled for, where the request names one."""
    meta = message.metadata
    if not meta.uid:
        return None
    return PodMetadata(name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=meta.attempt)


def _check_security(context: cri.LinuxSandboxSecurityContext) -> None:
    _check_namespaces(context.namespace_options)
    _check_user(context)
    if context.privileged:
        raise InvalidArgument("a privileged pod cannot be a VM: take `privileged` out of it")


def _check_user(
    context: cri.LinuxSandboxSecurityContext | cri.LinuxContainerSecurityContext,
) -> None:
    """The CRI has a runtime refuse a group without a user."""
    if not context.HasField("run_as_group") or context.HasField("run_as_user"):
        return
    if isinstance(context, cri.LinuxContainerSecurityContext) and context.run_as_username:
        return
    raise InvalidArgument(
        f"linux.security_context.run_as_group {context.run_as_group.value} must be with "
        "run_as_user: write `runAsUser` beside `runAsGroup` in the pod's securityContext"
    )


def _check_namespaces(options: cri.NamespaceOption) -> None:
    for name in ("network", "pid", "ipc"):
        if getattr(options, name) == cri.NamespaceMode.NODE:
            raise InvalidArgument(
                f"a VM has a kernel of its own and cannot share the node's {name} namespace: take "
                f"host{'Network' if name == 'network' else name.upper()} out of the pod"
            )
    if options.pid == cri.NamespaceMode.TARGET:
        raise InvalidArgument(
            "a VM has a kernel of its own and cannot see another container's processes: take "
            "targetContainerName out of the container"
        )


def _port_mapping(message: cri.PortMapping, field: str) -> PortMapping:
    if message.protocol not in cri.Protocol.values():
        names = ", ".join(cri.Protocol.keys())
        raise InvalidArgument(f"{field}.protocol {message.protocol} must be one of {names}")
    return PortMapping(
        container_port=fields.port(message.container_port, f"{field}.container_port", lowest=1),
        host_port=fields.port(message.host_port, f"{field}.host_port", lowest=0),
        protocol=cri.Protocol.Name(message.protocol),
        host_ip=fields.address(message.host_ip, f"{field}.host_ip"),
    )


def _mount(message: cri.Mount) -> Mount:
    target = fields.absolute_path(message.container_path, "mounts: container_path")
    if message.HasField("image"):
        return _image_mount(message, target)
    if message.recursive_read_only and not message.readonly:
        raise InvalidArgument(f"mount {quote(target)}: recursive_read_only without readonly")
    source = fields.absolute_path(message.host_path, f"mount {quote(target)}: host_path")
    return Mount(
        guest_path=target,
        host_path=source,
        readonly=message.readonly,
        propagation=int(message.propagation),
    )


def _image_mount(message: cri.Mount, target: str) -> Mount:
    """An image is only ever read, whatever the request says."""
    image = message.image.image_ref or message.image.image
    if not image:
        raise InvalidArgument(f"mount {quote(target)}: image.image is empty: it names no image")
    path = message.image_sub_path
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise InvalidArgument(
            f"mount {quote(target)}: image_sub_path {quote(path)} is no path inside the image: "
            "write one without a leading slash and without `..`"
        )
    return Mount(
        guest_path=target,
        host_path="",
        readonly=True,
        image=image,
        user_image=message.image.user_specified_image,
        image_sub_path="/".join(part for part in path.split("/") if part not in ("", ".")),
    )


def _device(message: cri.Device) -> Device:
    return Device(
        guest_path=fields.absolute_path(message.container_path, "devices: container_path"),
        host_path=fields.absolute_path(message.host_path, "devices: host_path"),
        permissions=message.permissions,
    )
