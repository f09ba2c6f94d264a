"""Thin helpers over the host: commands, files, network namespaces, cgroups."""
