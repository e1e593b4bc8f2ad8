"""Runs a command of recsys in this process, or code in a new one."""

from __future__ import annotations

import contextlib
import io
import pathlib
import subprocess
import sys
import types

ROOT = pathlib.Path(__file__).parents[1]


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


def run_python(code: str) -> str:
    """Returns what `code` prints in a new Python process in the checkout."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
