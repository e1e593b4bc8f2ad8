"""`python -m recsys.combine`: makes one model of several: the sum of scores."""

from __future__ import annotations

import pathlib
import shlex
import shutil
import sys
from collections.abc import Sequence
from typing import Any

import recsys
from recsys import files
from recsys.command_line import Command, load_tensorflow, required_path
from recsys.config import (
    DATA_FIELDS,
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
    "Makes one model of several of the same log, such as of different seeds: "
    "its scores are the sums of theirs, still one dot product of a query's "
    "vector and an item's. It is evaluated, exported and served as any other.",
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
# Fields that say what a model reads; where the log is may be said differently.
_COMMON = (
    *(name for name in DATA_FIELDS if name not in SOURCE_FIELDS),
    *("item_features", *FEATURE_FIELDS, "max_history_length"),
)


def main(values: dict[str, Any]) -> int:
    """Combines models.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    folders = read_workdirs(values["workdirs"])
    output = required_path(values, "output_workdir", "be given")
    if not files.is_new_or_empty(output):
        raise InputError(
            "--output_workdir must be a new or empty folder. "
            f"Received: {str(output)!r}"
        )
    if not files.can_write(output.absolute().parent):
        raise InputError(
            "--output_workdir must be a folder that can be written. "
            f"Received: {str(output)!r}"
        )
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
        InputError: They are fewer than two, or one is named twice.
    """
    folders = [Workdir(pathlib.Path(name)) for name in parse_names(text)]
    different = {folder.path.resolve() for folder in folders}
    if len(folders) < 2 or len(different) < len(folders):
        raise InputError(
            "--workdirs must name at least two folders, each once. "
            f"Received: {text!r}"
        )
    return folders


def check_workdirs(folders: Sequence[Workdir]) -> TrainConfig:
    """Checks that models can be summed, without TensorFlow.

    Args:
        folders: Their workdirs.

    Returns:
        The configuration of the first, which says what all of them read.

    Raises:
        InputError: A workdir has no model, or their models are of different
            items, settings of the data or features.
    """
    first = folders[0]
    configs = [folder.read_config() for folder in folders]
    vocabulary = first.read_vocabulary()
    for folder, config in zip(folders[1:], configs[1:], strict=True):
        for name in _COMMON:
            one, other = getattr(configs[0], name), getattr(config, name)
            if one != other:
                raise InputError(
                    f"--workdirs must agree on {name}. Received: {one!r} in "
                    f"{first.path} and {other!r} in {folder.path}"
                )
        if not same_training_items(vocabulary, folder.read_vocabulary()):
            raise InputError(
                "--workdirs must be of one log and split. Received: "
                f"{folder.path} of other items, or other numbers of "
                f"interactions with them, than {first.path}"
            )
        for name in ("item_features", "side_information"):
            paths = [getattr(each, name) for each in (first, folder)]
            if paths[0].is_file() and (
                files.read_json(paths[0]) != files.read_json(paths[1])
            ):
                raise InputError(
                    "--workdirs must have the same features. Received: "
                    f"{paths[0]} and {paths[1]}, which differ"
                )
    return configs[0]


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
        about = {
            "workdirs": [str(each.path.absolute()) for each in folders],
            "seeds": [each.read_config().seed for each in folders],
        }
        files.write_json(folder.combination, about)
        files.write_json(folder.config, config.to_dict())


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
