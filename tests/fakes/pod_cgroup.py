"""A pod's control group, as a kubelet makes it."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from virtlet.host import cgroups


@contextmanager
def pod_cgroup() -> Iterator[str]:
    """A `cgroup_parent` that exists in every hierarchy of this node that is writable."""
    name = f"virtlet-test-{uuid.uuid4().hex[:8]}"
    made: list[Path] = []
    try:
        for hierarchy in cgroups.hierarchies():
            group = hierarchy.mount / name
            try:
                group.mkdir()
            except OSError:
                continue
            made.append(group)
            # Version 1 starts with an empty cpuset.
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (group / file).exists() and not hierarchy.unified:
                    (group / file).write_text((hierarchy.mount / file).read_text())
        yield f"/{name}"
    finally:
        for group in made:
            # A test that failed may have left its VM's.
            for below in [path for path in group.iterdir() if path.is_dir()]:
                below.rmdir()
            group.rmdir()
