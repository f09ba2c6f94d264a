"""What the proxy is told: the options, where they come from, and whether they can work."""
