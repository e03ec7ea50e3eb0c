"""The one exception that a user is meant to read."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where it stands, and what to do about it. The command line prints it
    and exits with status 2; no traceback is shown.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on a GPU or not; torch and the libraries below it say so in words."""
    words = ("out of memory", "allocate memory", "not enough memory", "alloc_failed", "allocation failed")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words))
