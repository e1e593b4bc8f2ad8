"""What the command-line modules tell in one line."""

from __future__ import annotations

import importlib.util

# What pip installs; `recsys` on PyPI is another project.
DISTRIBUTION = "recsys-towers"


class InputError(ValueError):
    """A path, column, row, flag or id from outside cannot be used.

    The message names the argument or file (with its line where there is
    one), says what was expected and ends with what was received. The
    command-line modules print it as one line and exit with code 2.
    """


def missing_extra(what: str, extra: str, received: object) -> InputError:
    """Returns the error for what needs an extra, with how to install it."""
    return InputError(
        f"{what} needs the extra [{extra}]: pip install "
        f"'{DISTRIBUTION}[{extra}]' (in a checkout: pip install '.[{extra}]'). "
        f"Received: {received}"
    )


def need_packages(what: str, extra: str, *packages: str) -> None:
    """Raises the error of `missing_extra` if a package is not installed."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise missing_extra(what, extra, f"no package `{package}`")


class MismatchError(RuntimeError):
    """Something was written that does not answer as the model does.

    The command-line modules print it as one line and exit with code 1.
    """


class WorkerLostError(RuntimeError):
    """Another process of the run did not come, is gone, or does not fit.

    The command-line modules print it as one line and exit with code 1.
    """
