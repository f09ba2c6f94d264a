"""What becomes of VMs, as events on their pods."""
