"""The domain document: a machine as libvirt XML."""
