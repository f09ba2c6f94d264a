"""What cloud-init in the guest is told."""

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from virtlet.model.typed import typed


@frozen(kw_only=True, field_transformer=typed)
class CloudInitPart:
    """One plugin's contribution to the seed.

    The core merges the parts: mappings recurse, lists append, and two plugins that set one
    scalar differently are an error naming both. At most one part may hold a script or a
    network configuration.
    """

    meta_data: Mapping[str, Any] = field(factory=dict, repr=False)
    user_data: Mapping[str, Any] = field(factory=dict, repr=False)
    """A cloud-config document."""
    script: str | None = field(default=None, repr=False)
    """A script that is the whole user-data instead of a cloud-config document."""
    network_config: Mapping[str, Any] | None = field(default=None, repr=False)
    overrides: frozenset[str] = frozenset()
    """Top-level keys of `user_data` that replace what other parts say instead of merging."""


@frozen(kw_only=True, field_transformer=typed)
class CloudInit:
    """The merged documents of one VM."""

    meta_data: Mapping[str, Any] = field(factory=dict, repr=False)
    user_data: Mapping[str, Any] = field(factory=dict, repr=False)
    script: str | None = field(default=None, repr=False)
    network_config: Mapping[str, Any] | None = field(default=None, repr=False)
