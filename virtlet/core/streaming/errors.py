"""What ends a stream or a session before its work is done."""


class StreamClosed(BrokenPipeError):
    """The client's end of a stream, or its whole connection, is gone: stop writing."""


class SessionEnded(Exception):
    """A session ends before its work is done; the client is shown the message."""


class ProtocolError(SessionEnded):
    """The client broke the protocol, so that nothing it sends can be understood any more."""


class StreamsMissing(SessionEnded):
    """The client did not open the streams of its session in time."""


class IdleTimeout(SessionEnded):
    """Nothing moved on the connection for the allowed time."""


class ServerStopping(SessionEnded):
    """The server shuts down."""
