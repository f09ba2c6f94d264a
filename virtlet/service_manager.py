"""The service manager that has started this process, as systemd does: sd_notify(3)."""

import logging
import os
import socket

log = logging.getLogger(__name__)

_SOCKET = "NOTIFY_SOCKET"
READY, STOPPING = "READY=1", "STOPPING=1"


class ServiceManager:
    """Whoever waits to be told how far this process is; nobody, where it was started by hand.

    Its address is taken out of the environment, so that no child speaks for this process.
    """

    def __init__(self) -> None:
        self._address = os.environ.pop(_SOCKET, "")

    def tell(self, state: str) -> None:
        """Send a state; a failure is logged.

        Args:
            state: `READY` or `STOPPING`.
        """
        if not self._address:
            return
        path = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            try:
                notify.sendto(state.encode(), path)
            except OSError as error:
                log.warning("cannot notify the service manager: %s", error)
