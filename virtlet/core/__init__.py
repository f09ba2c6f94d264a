"""The manager: CRI services, lifecycle, store, console, launch and metrics."""
