"""`python -m recsys.export`: a trained model for where Python is not."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import Any

from recsys.command_line import (
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
)
from recsys.errors import InputError
from recsys.serving.formats import FORMATS, check_output, write_export

COMMAND = Command(
    "recsys.export",
    "Writes a trained model as files that need nothing of this package, each "
    "read again and compared with the model: "
    + "; ".join(f"{name} ({each.summary})" for name, each in FORMATS.items())
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
    str,
    "output",
    "The folder that gets a folder for each format. An earlier export there "
    "is replaced.",
    group="Export",
)
COMMAND.add_flag(
    str,
    "formats",
    "Which formats, with commas between.",
    group="Export",
    default=",".join(FORMATS),
)
COMMAND.add_flag(
    bool,
    "exclude_history",
    "Whether items of a history are left out of what is recommended for it.",
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
    folder = model_folder(values)
    if not values["output"]:
        raise InputError("--output must name a folder. Received: none")
    names = _format_names(values["formats"])
    output = pathlib.Path(values["output"])
    check_output(output)
    # What needs no TensorFlow comes first, so that mistakes are told at once.
    from recsys.workdir import Workdir

    workdir = Workdir(folder)
    config = workdir.read_config()
    load_tensorflow()

    from recsys import __version__
    from recsys.recommender import load

    write_export(
        load(workdir.path),
        output,
        names,
        exclude_history=values["exclude_history"],
        about={"recsys": __version__, "data": config.data},
    )
    print(
        f"The model is in {shlex.quote(str(output))} as {', '.join(names)}; "
        "each answers as the model does."
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
    return list(dict.fromkeys(names))


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
