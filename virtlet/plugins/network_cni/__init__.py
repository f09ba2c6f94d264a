"""The built-in network: CNI plugins, and a bridge from the pod's veth to the guest's tap."""
