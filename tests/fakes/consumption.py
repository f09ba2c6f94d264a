"""A hypervisor in memory that tells what its domains consume, late or not at all when asked to."""

import threading
from collections.abc import Mapping

from attrs import define, field

from tests.fakes.hypervisor import FakeHypervisor
from virtlet.errors import Unavailable
from virtlet.model.stats import DomainStats


@define
class MeasuredHypervisor(FakeHypervisor):
    """Tells `consumed`; does not while it is away, and not until `answers` is set."""

    consumed: dict[str, DomainStats] = field(factory=dict)
    answers: threading.Event = field(factory=threading.Event)
    looks: int = 0
    """How often it was asked."""

    def __attrs_post_init__(self) -> None:
        self.answers.set()

    def stats(self) -> Mapping[str, DomainStats]:
        self.looks += 1
        self.answers.wait(60)
        if self.away:
            raise Unavailable(self.away)
        return dict(self.consumed)
