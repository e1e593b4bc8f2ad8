"""Sends strange requests to recsys.serve, made from its own description.

    pip install schemathesis
    python scripts/fuzz_server.py --workdir=runs/movielens-small

starts a server and runs schemathesis (https://schemathesis.io) against its
/openapi.json: no answer may be a 5xx, differ from its description or take too
long, and what the description forbids must be refused. The exit code is 1
where something was found, or where the server wrote a traceback.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmark_serving import start_server

from recsys.command_line import Command, add_model_flag, model_folder
from recsys.errors import InputError

COMMAND = Command(
    "fuzz_server",
    "Runs schemathesis against a server's own description.",
    ["scripts/fuzz_server.py --workdir=runs/movielens-small"],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    str,
    "program",
    "The program schemathesis.",
    group="Run",
    default="schemathesis",
)
COMMAND.add_flag(
    int, "examples", "Requests of each kind.", group="Run", default=100
)
COMMAND.add_flag(int, "seed", "Seed of the requests.", group="Run", default=1)


def main(values: dict[str, Any]) -> int:
    """Fuzzes a server, and prints what schemathesis finds."""
    with start_server(model_folder(values)) as server:
        command = [
            values["program"],
            "run",
            f"{server.address}/openapi.json",
            f"--max-examples={values['examples']}",
            f"--seed={values['seed']}",
            "--no-color",
            # JSON Schema cannot say which conditions `where` may have, or
            # which ids there are.
            "--exclude-checks=positive_data_acceptance",
        ]
        try:
            # It keeps what it finds in the folder it runs in.
            with tempfile.TemporaryDirectory() as folder:
                code = subprocess.run(command, cwd=folder).returncode
        except OSError as error:
            raise InputError(
                "--program must be schemathesis (pip install schemathesis). "
                f"Received: {values['program']} ({error})"
            ) from error
        is_alive = server.process.poll() is None
    written = pathlib.Path(server.errors).read_text("utf-8")
    print(written)
    return 1 if code or not is_alive or "Traceback" in written else 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
