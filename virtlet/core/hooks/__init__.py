"""Plugins: finding them, choosing them per handler, and calling their hooks."""
