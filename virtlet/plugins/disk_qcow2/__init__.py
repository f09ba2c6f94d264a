"""Root disks: a qcow2 overlay of the VM's own on the read-only image."""
