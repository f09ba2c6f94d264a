"""Who serves sessions: commands in guests, consoles to attach to, ports to reach."""
