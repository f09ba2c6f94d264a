"""Stubs of CSI and of the kubelet's registration of plugins, generated from proto/."""
