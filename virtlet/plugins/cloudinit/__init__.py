"""cloud-init: what the guest is told at first boot, and the disk that carries it."""
