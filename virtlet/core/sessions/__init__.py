"""Who serves streaming sessions: consoles to attach to, ports to reach."""
