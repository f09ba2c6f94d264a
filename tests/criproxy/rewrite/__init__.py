"""Tests of what is changed in messages."""
