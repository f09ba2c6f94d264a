"""WebSocket as Kubernetes uses it: channels in messages, and SPDY tunnelled in messages."""
