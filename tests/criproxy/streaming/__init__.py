"""Tests of relative streaming URLs."""
