"""How a session tells the client its result: a metav1.Status, or before protocol v4 plain text.

Source: apimachinery/pkg/apis/meta/v1 and client-go/tools/remotecommand of Kubernetes.
"""

import json
from typing import Any

from attrs import frozen


@frozen
class Status:
    """A result, as JSON for protocols v4 and later and as text for earlier ones."""

    document: dict[str, Any]
    text: str

    def encode(self, *, as_json: bool) -> bytes:
        """Return what the error stream carries; success is no bytes at all before v4."""
        return json.dumps(self.document).encode() if as_json else self.text.encode()


def success() -> Status:
    """Return the status of a session that ended well."""
    return Status({"metadata": {}, "status": "Success"}, "")


def exited(code: int) -> Status:
    """Return the status of a command that ended with this code."""
    if code == 0:
        return success()
    message = f"command terminated with non-zero exit code: exit status {code}"
    return Status(
        {
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
        },
        message,
    )


def failed(message: str) -> Status:
    """Return the status of a session that could not do its work."""
    return Status(
        {
            "metadata": {},
            "status": "Failure",
            "message": f"Internal error occurred: {message}",
            "reason": "InternalError",
            "details": {"causes": [{"message": message}]},
            "code": 500,
        },
        message,
    )
