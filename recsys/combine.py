"""`python -m recsys.combine`: combines several models into one."""

from __future__ import annotations

import collections
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import recsys
from recsys import files
from recsys.command_line import (
    Command,
    check_new_workdir,
    load_tensorflow,
    required_path,
)
from recsys.config import (
    FEATURE_FIELDS,
    SOURCE_FIELDS,
    TrainConfig,
    parse_names,
)
from recsys.data.prepare import same_training_items
from recsys.errors import InputError
from recsys.workdir import Workdir

COMMAND = Command(
    "recsys.combine",
    "Combines several models of the same log, for example from different "
    "seeds, into one whose scores are the sums of theirs: still one dot "
    "product of a query's vector and an item's. It can be evaluated, exported "
    "and served like any other model.",
    [
        "python -m recsys.combine --workdirs=runs/seed-0,runs/seed-1 \\\n"
        "      --output_workdir=runs/both",
    ],
)
COMMAND.add_flag(
    str,
    "workdirs",
    "Folders of at least two models of the same log, split and features, "
    "separated by commas.",
    group="Model",
)
COMMAND.add_flag(
    pathlib.Path,
    "output_workdir",
    "The folder of the new model, new or empty. The others stay as they are.",
    group="Run",
)
# Fields that all models must have in common, besides those of the data.
_COMMON = ("item_features", *FEATURE_FIELDS, "max_history_length")


def main(values: dict[str, Any]) -> int:
    """Combines models.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    folders = read_workdirs(values["workdirs"])
    output = required_path(values, "output_workdir", "be given")
    check_new_workdir(output)
    config = check_workdirs(folders)
    load_tensorflow()
    write_combination(folders, config, output)
    place = shlex.quote(str(output))
    print(
        f"The sum of {len(folders)} models is in {place}. Next:\n"
        f"  python -m recsys.evaluate --workdir={place}"
    )
    return 0


def read_workdirs(text: str | None) -> list[Workdir]:
    """Returns the workdirs that `--workdirs` names.

    Raises:
        InputError: They are fewer than two.
    """
    folders = [Workdir(pathlib.Path(name)) for name in parse_names(text)]
    if len(folders) < 2:
        raise InputError(
            "--workdirs must name at least two folders. Received: "
            f"{'none' if text is None else repr(text)}"
        )
    return folders


def check_workdirs(folders: Sequence[Workdir]) -> TrainConfig:
    """Checks that models can be summed, without TensorFlow.

    Args:
        folders: Their workdirs.

    Returns:
        The configuration of the first, which says what all of them read.

    Raises:
        InputError: A workdir has no model, a model is there twice, or they
            differ in their items, settings of the data or features.
    """
    configs = [folder.read_config("--workdirs") for folder in folders]
    counts = collections.Counter(
        os.path.realpath(part["workdir"])
        for folder in folders
        for part in folder.parts()
    )
    if twice := [path for path, count in counts.items() if count > 1]:
        raise InputError(
            "--workdirs must have each model once, also within combined ones. "
            f"Received: {twice[0]} {counts[twice[0]]} times"
        )
    vocabulary = folders[0].read_vocabulary()
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        _check_settings((folders[0], folder), (configs[0], config))
        if not same_training_items(vocabulary, folder.read_vocabulary()):
            raise InputError(
                "--workdirs must be of one log and split. Received: "
                f"{folder.path} with other items, or other numbers of "
                f"interactions with them, than {folders[0].path}"
            )
        _check_features(folders[0], folder)
    return configs[0]


def _check_settings(
    folders: tuple[Workdir, Workdir], configs: tuple[TrainConfig, TrainConfig]
) -> None:
    """Raises InputError unless two models are to read the same."""
    # The path of the log may be another one.
    differing = configs[0].data_differences(configs[1]).keys() - SOURCE_FIELDS
    differing |= {
        n for n in _COMMON if getattr(configs[0], n) != getattr(configs[1], n)
    }
    for name in sorted(differing):
        received = [
            f"{getattr(config, name)!r} in {folder.path}"
            for folder, config in zip(folders, configs, strict=True)
        ]
        raise InputError(
            f"--workdirs must agree on {name}. Received: "
            f"{' and '.join(received)}"
        )


def _check_features(*folders: Workdir) -> None:
    """Raises InputError unless two models have the same fitted features."""
    for name in ("item_features", "side_information"):
        paths = [getattr(folder, name) for folder in folders]
        found = [files.read_json(x) if x.is_file() else None for x in paths]
        if found[0] != found[1]:
            raise InputError(
                "--workdirs must have the same features. Received: "
                f"{paths[0]} and {paths[1]}, which differ"
            )


def write_combination(
    folders: Sequence[Workdir], config: TrainConfig, output: pathlib.Path
) -> None:
    """Writes the workdir of the sum of models.

    Args:
        folders: The models' workdirs, checked.
        config: What `check_workdirs` returned.
        output: The new workdir; appears when it is complete.

    Raises:
        InputError: A model cannot be loaded, or the models cannot be summed.
        OSError: A file could not be written.
    """
    models = [recsys.recommender.restore(folder).model for folder in folders]
    try:
        both = recsys.ensemble(models)
    except ValueError as error:
        raise InputError(f"--workdirs: {error}") from error
    first = folders[0]
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(output) as temporary:
        temporary.mkdir()
        folder = Workdir(temporary)
        for name in ("vocabulary", "item_features", "side_information"):
            source: pathlib.Path = getattr(first, name)
            if source.is_file():
                with folder.writing(getattr(folder, name)) as path:
                    shutil.copy(source, path)
        if first.log.is_dir():
            shutil.copytree(first.log, folder.log)
        with folder.writing(folder.model) as path:
            both.save(path)
        parts = [part for each in folders for part in each.parts()]
        files.write_json(folder.combination, {"models": parts})
        files.write_json(folder.config, config.to_dict())


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
