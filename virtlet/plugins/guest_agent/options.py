"""Settings of commands through the guest agent."""

from virtlet.model.option import Option, integer

GUEST_AGENT_TIMEOUT: Option[int] = Option(
    field="guestAgentTimeout",
    flag="--guest-agent-timeout",
    env="VIRTLET_GUEST_AGENT_TIMEOUT",
    kind=integer(1, 86400),
    default="300",
    help="seconds that a guest may take to boot until its agent answers and its seed is applied: "
    "so long a command without a time limit, as a postStart hook is, waits for it, and so long "
    "after the VM's creation an exec probe that meets a booting guest does not count as failed",
)
