"""Which shares over 9p a guest has opened, by the queue of their devices.

Source: x-query-virtio-queue-status of QEMU's qapi/virtio.json (7.2 and later). It must never be
asked of a device that another process serves, as virtiofsd does: to find out, QEMU takes the queue
from that process, and the guest's next request is never answered.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import libvirt_qemu

log = logging.getLogger(__name__)


def opened_shares(domain: Any) -> Mapping[str, bool]:
    """Tag of each 9p share to whether QEMU has answered a request since the guest's reset.

    A driver asks for nothing before a mount. A share of which QEMU does not tell is left out.

    Raises:
        libvirt.libvirtError: the domain does not run, or its emulator does not answer.
    """
    found = {}
    for share in ElementTree.fromstring(domain.XMLDesc()).iterfind("devices/filesystem"):
        driver, target, alias = share.find("driver"), share.find("target"), share.find("alias")
        if driver is None or target is None or alias is None or driver.get("type") != "path":
            continue
        path = f"/machine/peripheral/{alias.get('name')}/virtio-backend"
        arguments = {"path": path, "queue": 0}
        command = {"execute": "x-query-virtio-queue-status", "arguments": arguments}
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, json.dumps(command), 0))
        if "return" in answer:
            found[target.get("dir", "")] = answer["return"]["used-idx"] > 0
        else:
            log.debug("share not looked at", extra={"path": path, "problem": answer.get("error")})
    return found
