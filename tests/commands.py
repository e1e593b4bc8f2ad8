"""Runs a command of recsys as its program would, in this process."""

from __future__ import annotations

import contextlib
import io
import types


def run(module: types.ModuleType, *arguments: str) -> tuple[int, str, str]:
    """Runs a command.

    Args:
        module: Its module, such as `recsys.train`.
        *arguments: The command line.

    Returns:
        Exit code, standard output and standard error.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = module.COMMAND.run(module.main, arguments)
    return code, out.getvalue(), err.getvalue()
