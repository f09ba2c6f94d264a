"""Refusing what cannot work, before anything is touched."""

from difflib import get_close_matches

from virtlet.core.hooks.facade import Hooks
from virtlet.errors import InvalidArgument
from virtlet.model.pod import Pod

PREFIX = "Virtlet"
"""Annotations that start like this are meant for us."""


def check_annotations(hooks: Hooks, pod: Pod) -> None:
    """Check every annotation that is meant for us against the plugins' declarations.

    Raises:
        InvalidArgument: one is unknown or has a wrong value; the message names it.
    """
    declared = {a.name: a for _, a in hooks.annotations(pod.profile)}
    for name in pod.config.annotations:
        if name in declared:
            declared[name].of(pod)
        elif name.startswith(PREFIX):
            near = get_close_matches(name, declared, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise InvalidArgument(
                f"annotation {name}: no plugin of handler {pod.profile.handler!r} knows it{hint}"
            )
