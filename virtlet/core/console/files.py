"""Where a VM's console lies on the node, and what is told about its log.

The emulator reads what is typed from a FIFO and writes what the guest prints to an ordinary file.
So it never waits for us, dead or alive: a write to an ordinary file neither blocks nor comes back
half done. docs/decisions/0004-console-is-a-file.md has what else was tried.
"""

from pathlib import Path

from attrs import frozen


@frozen
class ConsoleFiles:
    """The files of one VM's console."""

    vm_id: str
    stem: Path
    """The three files below are named after it."""
    log: Path | None
    """The CRI log that the kubelet reads; None drops what the guest prints."""

    @property
    def raw(self) -> Path:
        """Every byte the guest printed; what is in the log already is punched out as holes."""
        return self.stem.with_name(f"{self.stem.name}.out")

    @property
    def keyboard(self) -> Path:
        """FIFO whose bytes the guest reads as typed."""
        return self.stem.with_name(f"{self.stem.name}.in")

    @property
    def state(self) -> Path:
        """How far the raw file has been written to the log; ours alone."""
        return self.stem.with_name(f"{self.stem.name}.state")


@frozen
class LogStatus:
    """How the log of one VM stands."""

    vm_id: str
    pending: int
    """Bytes the guest printed that are kept and not in the log yet."""
    problem: str = ""
    """Why nothing can be written now (it is retried), empty when all is well."""
    note: str = ""
    """What the operator should know although the log is complete, such as a raw file that grows."""
    lost: int = 0
    """Bytes that were given up, as the log could not be written; the log does not say so yet."""

    @property
    def complete(self) -> bool:
        """Whether every byte is in the log, or told there as lost."""
        return self.pending == 0 and self.lost == 0 and not self.problem
