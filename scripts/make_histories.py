"""Writes random histories of a model's items, to time batch recommendations.

    python scripts/make_histories.py --workdir=runs/movielens-small \
        --num_histories=50000 --output=histories.jsonl
    python -m recsys.recommend --workdir=runs/movielens-small \
        --histories=histories.jsonl --output=recommended.jsonl

The lengths are log-normal with a median of 67 and a mean of about 105, like
those of MovieLens; the items are drawn uniformly. The second command prints how
many histories it answered per second.
"""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import numpy as np

from recsys.command_line import Command, add_model_flag, model_folder
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.workdir import Workdir

_SHORTEST, _LONGEST = 5, 1500

COMMAND = Command(
    "make_histories",
    "Writes random histories of a model's items, the same in every run.",
    [
        "scripts/make_histories.py --workdir=runs/movielens-small \\\n"
        "      --num_histories=50000 --output=histories.jsonl"
    ],
)
add_model_flag(COMMAND)
COMMAND.add_flag(int, "num_histories", "How many.", group="Run", default=50_000)
COMMAND.add_flag(str, "output", "The file to write.", group="Run")


def main(values: dict[str, Any]) -> int:
    """Writes the file.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    folder = Workdir(model_folder(values))
    if not values["output"]:
        raise InputError("--output must name a file. Received: none")
    folder.read_config()
    ids = Vocabulary.load(folder.vocabulary).item_ids
    rng = np.random.default_rng(0)
    with pathlib.Path(values["output"]).open("w", encoding="utf-8") as out:
        for number in range(values["num_histories"]):
            length = int(np.clip(rng.lognormal(4.2, 1), _SHORTEST, _LONGEST))
            history = ids[rng.integers(len(ids), size=length)].tolist()
            query = {"query_id": str(number), "history": history}
            out.write(json.dumps(query, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
