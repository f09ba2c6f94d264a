"""The domain document: rendered by one plugin, edited by others, checked by the core."""

from xml.etree import ElementTree

from virtlet.core.hooks.facade import Hooks
from virtlet.errors import PluginError
from virtlet.model.vm import Machine

_CORE_OWNED = ("uuid", "name", "devices/emulator")


def domain_document(hooks: Hooks, machine: Machine) -> str:
    """The document that is handed to the hypervisor.

    Raises:
        PluginError: the renderer's text is no XML, an editor left none, or touched what is not
            its own.
    """
    text = hooks.render_domain(machine)
    editors = hooks.domain_customizers(machine.vm.pod.profile)
    if not editors:
        return text
    domain = ElementTree.fromstring(text)
    owned = _owned(domain)
    for plugin in editors:
        hooks.customize_domain(plugin, machine, domain)
        for path, before, after in zip(_CORE_OWNED, owned, _owned(domain), strict=True):
            if before != after:
                raise PluginError(
                    plugin,
                    "virtlet_customize_domain",
                    f"changed <{path}> of the domain",
                    "the core finds the VM by it: take that edit out of the plugin",
                )
    return ElementTree.tostring(domain, encoding="unicode")


def _owned(domain: ElementTree.Element) -> list[list[str | None]]:
    return [[element.text for element in domain.findall(path)] for path in _CORE_OWNED]
