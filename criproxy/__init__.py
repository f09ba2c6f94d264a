"""One CRI socket in front of several container runtimes; stands alone beside the CRI stubs."""
