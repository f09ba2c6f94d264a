"""Tests on real runtimes."""
