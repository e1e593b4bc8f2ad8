"""The benchmarks' flag `--json`: what was measured, as a file."""

from __future__ import annotations

import pathlib
from typing import Any

from recsys.command_line import Command
from recsys.errors import InputError
from recsys.files import may_be_file, write_json


def add_json_flag(command: Command) -> None:
    """Gives a benchmark the flag."""
    command.add_flag(str, "json", "Also write JSON to this file.", group="Run")


def check_output_file(values: dict[str, Any], name: str = "json") -> None:
    """Checks before a long measurement that its file can be written after it.

    Args:
        values: The value of every flag.
        name: The flag that names the file.

    Raises:
        InputError: It is a folder, or in no folder that exists.
    """
    path = values[name]
    if path is not None and not may_be_file(pathlib.Path(path)):
        raise InputError(
            f"--{name} must name a file in a folder that exists. "
            f"Received: {path!r}"
        )


def write_if_asked(values: dict[str, Any], measured: Any) -> None:
    """Writes what was measured where the flag says, if it was given."""
    if values["json"]:
        write_json(pathlib.Path(values["json"]), measured)
