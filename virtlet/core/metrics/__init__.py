"""What pods and VMs consume: sampled once for all who ask."""
