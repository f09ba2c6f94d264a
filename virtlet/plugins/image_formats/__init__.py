"""What disk images are: qcow2 or raw, told by their content."""
