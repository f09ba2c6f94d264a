"""Tests of runtimes that come and go."""
