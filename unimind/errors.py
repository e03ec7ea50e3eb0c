"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where it stands, and what to do about it. The command line prints it
    and exits with status 2; no traceback is shown.
    """
