"""What ends a command with one line instead of a traceback."""


class CommandFailed(Exception):
    """The command could not do what it was asked for; the text is for its user."""
