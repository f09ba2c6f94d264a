"""What the manager remembers: pods, VMs and effects, in SQLite and in memory."""
