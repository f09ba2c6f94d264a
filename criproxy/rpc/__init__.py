"""gRPC's own rules on top of HTTP/2: messages, status, deadlines, calls in and out."""
