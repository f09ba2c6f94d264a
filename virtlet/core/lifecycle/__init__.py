"""What happens to pods and VMs, as lists of steps that read top to bottom."""
