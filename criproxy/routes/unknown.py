"""Methods that the stubs do not know: to the owner of an id in the request, else to the primary.

They pass whatever their kind: a stream in both directions is carried like a single message.
"""

from __future__ import annotations

from attrs import frozen

from criproxy.rewrite import wire
from criproxy.rpc.incoming import ServerCall
from criproxy.rpc.relay import Relay
from criproxy.rpc.status import Code
from criproxy.runtimes.owners import Owners
from criproxy.runtimes.runtime import Runtime


@frozen
class Unknown:
    """The rule.

    Args:
        owners: finds the owner of an id.
    """

    owners: Owners

    def __call__(self, call: ServerCall) -> None:
        """Route a call."""
        runtime, request = self._target(call)
        call.runtime = runtime.name
        # The path came from the client: unbounded names must not become metrics' labels.
        record = runtime.recorder("unknown")

        def ended(code: Code) -> None:
            record(code)
            runtime.touched()

        Relay(call, runtime.open, where=runtime.where, request=request, ended=ended)

    def _target(self, call: ServerCall) -> tuple[Runtime, bytes | None]:
        if call.message is None or len(self.owners.runtimes) == 1:
            return self.owners.primary, None
        payload = call.payload()
        for field in wire.texts(payload):
            owner = self.owners.known(field.text)
            if owner is not None:
                if owner.id != field.text:
                    return owner.runtime, wire.replace(payload, field, owner.id)
                return owner.runtime, None
        return self.owners.primary, None
