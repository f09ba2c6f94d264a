"""The hypervisor: QEMU driven by libvirt, in this process or by a daemon."""
