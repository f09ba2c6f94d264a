#!/usr/bin/env python3
"""Write docs/settings.md from the declarations of the core and the built-in plugins.

`make docs` runs it; tests/test_docs.py fails when the file is not what this prints.
"""

import sys

from virtlet.core.config.options import CORE_OPTIONS
from virtlet.core.hooks.facade import Hooks
from virtlet.core.hooks.registry import discover

HEAD = """\
# Settings

Written by `make docs` from the declarations; do not edit.

## Options of the manager

The later wins: default, VirtletConfigMapping of the cluster (options marked *yes* alone;
[node.md](node.md#settings-from-the-cluster)), configuration file (`--config`, by field name),
environment, flag.
`{data_dir}` is the data directory; `{socket_dir}` is /run with the default data directory, else the
data directory. The file has two more fields, `handlers` and `plugins`: see [hooks.md](hooks.md).

| field | flag | environment | type | default | | declared by | from the cluster |
|---|---|---|---|---|---|---|---|
"""

ANNOTATIONS = """
## Pod annotations

Strings, as all annotations. A wrong value, or an unknown annotation that begins with `Virtlet`, is
refused before anything is done.

| annotation | type | default | | declared by |
|---|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    registry = discover()
    hooks = Hooks(registry)
    builtin = set(registry.builtin)
    options = [("core", option) for option in CORE_OPTIONS]
    options += [(plugin, option) for plugin, option in hooks.options() if plugin in builtin]
    rows = [
        _row(
            *(o.field, o.flag, o.env, o.kind.name, o.default and f"`{o.default}`", o.help, plugin),
            "yes" if o.mappable else "",
        )
        for plugin, o in options
    ]
    annotations = [
        _row(a.name, a.kind.name, "" if a.default in ("", None, (), {}) else a.default, a.help, p)
        for p, a in sorted(hooks.annotations(), key=lambda pair: pair[1].name)
        if p in builtin
    ]
    return HEAD + "".join(rows) + ANNOTATIONS + "".join(annotations)


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
