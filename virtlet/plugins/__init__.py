"""The built-in plugins, one package each, found by entry point like any other."""
