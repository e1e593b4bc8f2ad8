"""`python -m recsys.extend`: adds interactions and items to a trained model."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import Any

import recsys
from recsys import files
from recsys.command_line import (
    Command,
    add_config_flags,
    add_model_flag,
    check_new_workdir,
    load_tensorflow,
    model_folder,
    required_path,
)
from recsys.config import SOURCE_FIELDS
from recsys.errors import InputError

COMMAND = Command(
    "recsys.extend",
    "Continues to train a model on new interactions, in a new workdir, from "
    "the old weights and the old optimizer state. New items get rows of their "
    "own. Rerun the same command to resume a run that was stopped.",
    [
        "python -m recsys.extend --workdir=runs/mine --data=november.csv \\\n"
        "      --output_workdir=runs/mine-november",
    ],
    interrupted="stopped; rerun the command to resume from the last checkpoint",
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    pathlib.Path,
    "output_workdir",
    "The new workdir, which also gets the grown log. The old one stays as it "
    "is.",
    group="Run",
)
add_config_flags(COMMAND, SOURCE_FIELDS)
COMMAND.add_flag(
    int,
    "num_epochs",
    "Maximum number of epochs on the grown training data.",
    group="Training",
    default=3,
)
COMMAND.add_flag(
    float,
    "learning_rate",
    "Peak learning rate. Default: a third of the old run's.",
    group="Training",
)
COMMAND.add_flag(
    bool,
    "train",
    "Whether to train; otherwise only rows are added, and the same command "
    "with --train trains later.",
    group="Training",
    default=True,
)


def main(values: dict[str, Any]) -> int:
    """Extends a model and trains it.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    workdir = model_folder(values)
    output = required_path(values, "output_workdir", "be given")
    required_path(values, "data", "be given")
    asked = {
        "workdir": str(workdir),
        "source": {name: values[name] for name in SOURCE_FIELDS},
        "num_epochs": values["num_epochs"],
        "learning_rate": values["learning_rate"],
    }
    if not _is_done(output, asked):
        _extend(workdir, output, asked)
    if values["train"]:
        config = recsys.workdir.Workdir(output).read_config()
        result = recsys.training.train(config, output)
        if result.results is not None:
            print(f"\n{result.results.table()}\n")
    print(
        f"The model is in {output}. Next:\n"
        f"  python -m recsys.evaluate --workdir={shlex.quote(str(output))}"
    )
    return 0


def _is_done(output: pathlib.Path, asked: dict[str, Any]) -> bool:
    """Whether this command has already made the new workdir."""
    extension = recsys.workdir.Workdir(output).extension
    if extension.is_file():
        differing = recsys.workdir.differences(
            files.read_json_object(extension), asked
        )
        if differing:
            raise InputError(
                f"{output}: expected no run, or one made with the same flags; "
                "name another --output_workdir. Received: a run with "
                f"different {differing}"
            )
        return True
    check_new_workdir(output)
    return False


def _extend(
    workdir: pathlib.Path, output: pathlib.Path, asked: dict[str, Any]
) -> None:
    """Makes the new workdir."""
    old = recsys.workdir.Workdir(workdir)
    old.check_trains()
    rate = asked["learning_rate"]
    if rate is None:
        rate = old.read_config().learning_rate / 3
    changes = {"num_epochs": asked["num_epochs"], "learning_rate": rate}
    grown = recsys.training.growth.grow_data(
        old, asked["source"], output, changes
    )
    notes = [*grown.log.notes, *grown.unseen]
    print("".join(f"{note}\n" for note in notes), end="")
    print(
        f"{len(grown.log.interactions):,} interactions with "
        f"{grown.grown_data.vocabulary.num_items:,} items, of which "
        f"{grown.num_new_items:,} are new",
        flush=True,
    )
    load_tensorflow()
    recsys.training.extension.write_extension(grown, output, asked)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
