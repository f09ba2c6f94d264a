"""Tests of the CRI proxy."""
