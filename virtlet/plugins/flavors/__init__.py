"""Flavors: the machine a VM gets, from limits, annotations and the handler's profile."""
