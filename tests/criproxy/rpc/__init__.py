"""Tests of gRPC's rules."""
