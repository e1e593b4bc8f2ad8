"""`python -m recsys.export`: writes a trained model for other environments."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import Any

import recsys
from recsys.command_line import (
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
    required_path,
)
from recsys.errors import InputError, need_packages
from recsys.serving import FORMATS, NOT_BY_DEFAULT, check_output

COMMAND = Command(
    "recsys.export",
    "Writes a trained model as files that do not need this package, each read "
    "back and compared with the model: "
    + "; ".join(f"{name} ({summary})" for name, summary in FORMATS.items())
    + ".",
    [
        "python -m recsys.export --workdir=runs/movielens-small \\\n"
        "      --output=exports/movielens-small",
        "python -m recsys.export --workdir=runs/mine --output=exports/mine "
        "\\\n      --formats=saved_model",
    ],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    pathlib.Path,
    "output",
    "The folder that gets a folder for each format. An earlier export there "
    "is replaced.",
    group="Export",
)
COMMAND.add_flag(
    str,
    "formats",
    "Which formats, separated by commas.",
    group="Export",
    default=",".join(name for name in FORMATS if name not in NOT_BY_DEFAULT),
)
COMMAND.add_flag(
    bool,
    "exclude_history",
    "Whether items of a history are excluded from its recommendations.",
    group="Export",
    default=True,
)
COMMAND.add_flag(
    bool,
    "card",
    "Whether to write a model card, MODEL_CARD.md: data, protocol, results "
    "with intervals, limits, and what the run did not record.",
    group="Export",
    default=True,
)


def main(values: dict[str, Any]) -> int:
    """Exports a model.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    path = model_folder(values)
    output = required_path(values, "output")
    names = _format_names(values["formats"])
    # Errors that need no TensorFlow are reported before it is loaded.
    check_output(output)
    folder = recsys.workdir.Workdir(path)
    config = folder.read_config()
    vocabulary = recsys.data.vocabulary.Vocabulary.load(folder.vocabulary)
    load_tensorflow()

    from recsys.serving import card, formats

    recommender = recsys.recommender.restore(folder, config, vocabulary)
    formats.write_export(
        recommender,
        output,
        names,
        exclude_history=values["exclude_history"],
        about={"data": config.data},
        card=card.model_card(recommender, folder) if values["card"] else None,
    )
    print(
        f"The model is in {shlex.quote(str(output))} as {', '.join(names)}; "
        "each format gives the model's answers."
    )
    return 0


def _format_names(text: str) -> list[str]:
    """Returns the formats that are named, each once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise InputError(
            f"--formats must be some of {', '.join(FORMATS)}. "
            f"Received: {text!r}"
        )
    for name in names:
        packages = NOT_BY_DEFAULT.get(name, ())
        need_packages(f"--formats={name}", "onnx", *packages)
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
