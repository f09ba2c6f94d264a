"""Talking to the servers of images: whom to connect to, what to show them, how long to wait."""
