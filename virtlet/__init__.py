"""Virtlet: virtual machines as ordinary Kubernetes pods, built of plugins.

A plugin imports `hookimpl` from here, marks functions named after the hooks of
`virtlet.hookspecs` with it, and is found by an entry point in the group `virtlet`.
"""

import pluggy

__all__ = ["HOOK_API", "PROJECT", "__version__", "hookimpl"]

__version__ = "2.0.0+dev"

PROJECT = "virtlet"
"""Name of the plugin project and of the entry point group."""

HOOK_API = 1
"""Major version of the plugin API. A plugin must say `VIRTLET_HOOK_API = N`, the version it was
built for; another number than this one, or none, is refused at start."""

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a function of a plugin as the implementation of the hook it is named after."""
