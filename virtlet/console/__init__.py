"""Serial consoles: what guests print goes to CRI logs, and people attach to them."""
