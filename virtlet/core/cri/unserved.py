"""The calls that are not served, each with its reason; they answer UNIMPLEMENTED with it."""

_CHECKPOINT = "a VM's checkpoint is not supported"

UNSERVED: dict[str, str] = {
    "RuntimeService.CheckpointContainer": _CHECKPOINT,
    "RuntimeService.CheckpointPod": _CHECKPOINT,
    "RuntimeService.RestorePod": _CHECKPOINT,
}
"""`Service.Method` to why it is not served."""
