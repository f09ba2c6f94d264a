"""The image store and everything that brings an image into it."""
