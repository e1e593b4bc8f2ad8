"""What the command-line modules tell in one line."""

from __future__ import annotations


class InputError(ValueError):
    """A path, column, row, flag or id from outside cannot be used.

    The message names the argument or file (with its line where there is
    one), says what was expected and ends with what was received. The
    command-line modules print it as one line and exit with code 2.
    """


class MismatchError(RuntimeError):
    """Something was written that does not answer as the model does.

    The command-line modules print it as one line and exit with code 1.
    """


class WorkerLostError(RuntimeError):
    """Another process of the run did not come, is gone, or does not fit.

    The command-line modules print it as one line and exit with code 1.
    """
