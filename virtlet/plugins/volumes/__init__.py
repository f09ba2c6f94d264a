"""Volumes: what the pod's mounts and devices become in a VM."""
