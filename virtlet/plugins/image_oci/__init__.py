"""Fetches the disks of images in registries: containerDisks, and artifacts that are a disk."""
