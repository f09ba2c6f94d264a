"""The domain document: rendered by one plugin, edited by others, reviewed by the hypervisor."""

from xml.etree import ElementTree
from xml.etree.ElementTree import Element
from xml.parsers import expat

from virtlet.core.hooks.blame import returned
from virtlet.core.hooks.facade import Hooks
from virtlet.model.hypervisor import Hypervisor
from virtlet.model.vm import Machine


def domain_document(hooks: Hooks, hypervisor: Hypervisor, machine: Machine) -> Element | None:
    """The one tree that the renderer makes, the editors change and the hypervisor defines.

    Returns:
        The document; None where the hypervisor reads none, and nobody is asked for one.

    Raises:
        PluginError: the renderer or an editor left a document that the hypervisor cannot use.
        FailedPrecondition: nobody renders.
    """
    if not hypervisor.reads_documents():
        return None

    def check(plugin: str, hook: str) -> None:
        flaw = _unwritable(domain) or hypervisor.review(machine, domain)
        if flaw:
            raise returned(plugin, hook, f"left a domain document {flaw}")

    renderer, domain = hooks.render_domain(machine)
    check(renderer, "virtlet_render_domain")
    for plugin in hooks.order("virtlet_customize_domain", machine.vm.pod.profile):
        hooks.customize_domain(plugin, machine, domain)
        check(plugin, "virtlet_customize_domain")
    return domain


def _unwritable(domain: Element) -> str:
    """Why a tree cannot be written as XML that a parser takes, as a clause; "" when it can.

    The text is thrown away. Errors are not quoted, because they may hold what is in the document.
    """
    try:
        _descend(domain)
        written = ElementTree.tostring(domain)
        expat.ParserCreate(namespace_separator=" ").Parse(written, True)
    except expat.ExpatError as error:
        return f"that cannot be written as XML (line {error.lineno}, column {error.offset})"
    except Exception:
        return "that cannot be written as XML"
    return ""


def _descend(element: Element) -> None:
    """Raise RecursionError for an element that holds itself, where the writer would not end."""
    for child in element:
        _descend(child)
