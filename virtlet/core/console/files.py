"""Where a VM's console lies on the node, and what is told about its log.

The emulator has the serial port on a libvirt console of type `pipe` (QEMU: `-chardev
pipe,path=P`): it reads what is typed from the FIFO `P.in` and writes what the guest prints to
`P.out`, which is an ordinary file here. So the emulator never waits for us, dead or alive:
a write to an ordinary file neither blocks nor comes back half done. A socket chardev with a
`logfile` was tried and is not good enough. QEMU 10.0 waits for a client that is connected and
behind (after some 280 single bytes), and writes the bytes it then offers again to the log file
once more, so that attaching to a busy console slows the guest and falsifies its log. libvirt
also hands such a log file to virtlogd by default, which rotates it.
"""

from pathlib import Path

from attrs import frozen


@frozen
class ConsoleFiles:
    """The files of one VM's console."""

    vm_id: str
    pipe: Path
    """Path given to the emulator's pipe; the three files below are named after it."""
    log: Path | None
    """The CRI log that the kubelet reads; None drops what the guest prints."""

    @property
    def raw(self) -> Path:
        """Every byte the guest printed; what is in the log already is punched out as holes."""
        return self.pipe.with_name(f"{self.pipe.name}.out")

    @property
    def keyboard(self) -> Path:
        """FIFO whose bytes the guest reads as typed."""
        return self.pipe.with_name(f"{self.pipe.name}.in")

    @property
    def state(self) -> Path:
        """How far the raw file has been written to the log; ours alone."""
        return self.pipe.with_name(f"{self.pipe.name}.state")


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
