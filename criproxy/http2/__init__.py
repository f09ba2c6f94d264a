"""HTTP/2 as gRPC uses it, for relaying calls without unpacking them."""
