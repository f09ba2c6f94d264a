"""The runtimes behind the proxy: connections, last known items, owners of ids."""
