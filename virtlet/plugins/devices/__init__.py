"""Devices of the node that guests have for themselves, by VFIO."""
