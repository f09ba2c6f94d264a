"""Streaming URLs (exec, attach, port-forward) that a runtime gives without a host."""
