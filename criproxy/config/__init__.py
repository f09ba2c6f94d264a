"""The configuration: its keys, its sources, and whether it can work."""
