"""Fetches images over http and https, and from files of the node."""
