"""The runtimes behind the proxy: connections, what is known of them, who owns which id."""
