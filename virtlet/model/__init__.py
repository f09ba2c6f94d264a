"""Frozen data types that hooks take and return; they import nothing of ours but each other."""
