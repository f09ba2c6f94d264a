"""Image names: from what a pod asks for to an address, by translation files."""
