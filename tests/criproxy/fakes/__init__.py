"""Runtimes and the proxy as tests need them."""
