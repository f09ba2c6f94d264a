"""CRI v1 as the manager serves it: one file per small family of calls."""
