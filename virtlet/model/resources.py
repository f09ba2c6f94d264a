"""What a pod or VM may use of the node, in CRI's units."""

from collections.abc import Mapping

from attrs import field, frozen

from virtlet.model.typed import typed

DEFAULT_PERIOD = 100_000
"""Microseconds that a CPU quota is for where no period is said; the kernel's default."""


@frozen(kw_only=True, field_transformer=typed)
class Resources:
    """Linux container resources (CRI `LinuxContainerResources`); 0 and "" mean unset."""

    cpu_period: int = 0
    """Microseconds."""
    cpu_quota: int = 0
    """Microseconds per period for the whole VM; -1 says that there is no limit any more."""
    cpu_shares: int = 0
    memory_limit: int = 0
    """Bytes."""
    memory_swap_limit: int = 0
    """Bytes."""
    oom_score_adj: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: Mapping[str, int] = field(factory=dict)
    """Page size ("2MB") to bytes."""
    unified: Mapping[str, str] = field(factory=dict)
    """cgroup v2 file name to value."""
