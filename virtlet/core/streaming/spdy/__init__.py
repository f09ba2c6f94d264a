"""SPDY/3.1 as Kubernetes speaks it: framing and the streams of a connection."""
