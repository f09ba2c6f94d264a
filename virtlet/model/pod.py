"""A pod: the sandbox a VM runs in."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from virtlet.model.resources import Resources
from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class PodMetadata:
    """What the kubelet knows a pod by; the four fields together are unique."""

    name: str
    uid: str
    namespace: str
    attempt: int = 0


@frozen(kw_only=True, field_transformer=typed)
class DnsConfig:
    """Resolver settings, in resolv.conf's terms."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@frozen(kw_only=True, field_transformer=typed)
class PortMapping:
    """A port of the pod published on the node."""

    container_port: int
    host_port: int
    protocol: str = "TCP"
    host_ip: str = ""


@frozen(kw_only=True, field_transformer=typed)
class PodConfig:
    """The pod as the kubelet asked for it."""

    metadata: PodMetadata
    hostname: str = ""
    log_directory: str = ""
    dns: DnsConfig = DnsConfig()
    port_mappings: tuple[PortMapping, ...] = ()
    labels: Mapping[str, str] = field(factory=dict)
    annotations: Mapping[str, str] = field(factory=dict)
    cgroup_parent: str = ""
    sysctls: Mapping[str, str] = field(factory=dict)
    overhead: Resources = Resources()
    resources: Resources = Resources()


@frozen(kw_only=True, field_transformer=typed)
class Profile:
    """What a runtime handler stands for: which plugins serve it and its flavor settings.

    It is stored with every pod, so a pod is taken down by what set it up.
    """

    handler: str = ""
    plugins: tuple[str, ...] = ()
    """Names of all plugins active for this handler, in the order in which they are called; a first
    hook asks the last of them first. Built-in plugins come first, unless the handler names them."""
    flavor: Mapping[Any, Any] = field(factory=dict)
    """The handler's `flavor:` section of the configuration, as written there; in a pod, the answer
    to virtlet_pod_flavor in its place, where there was one."""


@frozen(kw_only=True, field_transformer=typed)
class Pod:
    """A pod that the manager has accepted."""

    id: str
    """32 lowercase hexadecimal digits."""
    config: PodConfig
    profile: Profile
    directory: Path
    """Private to this pod; made before the first hook is called and removed last."""
    created_at: int
    """Nanoseconds since the epoch."""

    @property
    def name(self) -> str:
        """`namespace/name`, for messages."""
        return f"{self.config.metadata.namespace}/{self.config.metadata.name}"
