"""gRPC on top of HTTP/2: messages, status, deadlines, incoming and outgoing calls."""
