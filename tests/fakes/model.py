"""Pods, VMs and the node, as small as a test needs them."""

from collections.abc import Sequence
from typing import Any

from virtlet.model.option import Option, Settings
from virtlet.testing.models import (
    NO_NETWORK,
    POD_UID,
    make_image,
    make_node,
    make_pod,
    make_vm,
    make_vm_config,
)

__all__ = [
    "NO_NETWORK",
    "POD_UID",
    "make_config",
    "make_image",
    "make_node",
    "make_pod",
    "make_vm",
    "make_vm_config",
]


def make_config(options: Sequence[Option[Any]] = (), **values: str) -> Settings:
    """A configuration of the options' defaults and the given texts (option field to text)."""
    return Settings(values={o.field: o.kind.parse(values.get(o.field, o.default)) for o in options})
