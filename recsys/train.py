"""`python -m recsys.train`: trains a model on a log of interactions."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

import recsys
from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    run_folder,
)
from recsys.config import make_config

if TYPE_CHECKING:
    from recsys.data.prepare import PreparedData

COMMAND = Command(
    "recsys.train",
    "Trains a two-tower model and compares it with baselines. Without flags, "
    "trains on the bundled MovieLens data into runs/movielens-small. Rerun the "
    "same command to resume a run that was stopped.",
    [
        "python -m recsys.train",
        "python -m recsys.train --preset=movielens-1m --data=ml-1m.zip",
        "python -m recsys.train --data=log.csv --workdir=runs/mine",
    ],
    interrupted="stopped; rerun the command to resume from the last checkpoint",
)
_FOLDER = "runs/<preset>"
add_run_flags(
    COMMAND, _FOLDER, "Folder of the model, its checkpoints and its results."
)
add_config_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and prints what to do next.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    config = make_config(values["preset"], given_fields(values))
    workdir = run_folder(values, _FOLDER)
    result = recsys.training.train(config, workdir)
    if result.results is not None:
        print(f"\n{result.results.table()}\n")
    if result.is_chief:
        print(_next_commands(workdir, result.data))
    return 0


def _next_commands(workdir: pathlib.Path, data: PreparedData) -> str:
    """Names the workdir and the commands that use it."""
    flag = f"--workdir={shlex.quote(str(workdir))}"
    history = " ".join(
        f"--history={shlex.quote(name)}" for name in data.example_history()
    )
    logs = shlex.quote(str(workdir / "logs"))
    return "\n".join(
        [
            f"The model and its results are in {workdir}. Next:",
            f"  python -m recsys.evaluate {flag}",
            f"  python -m recsys.recommend {flag} {history}",
            f"  tensorboard --logdir={logs}",
        ]
    )


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
