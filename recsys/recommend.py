"""`python -m recsys.recommend`: items for a history, or for many."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Any

from recsys.command_line import Command, load_tensorflow
from recsys.config_flags import add_model_flag, model_folder
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.data.vocabulary import Vocabulary
    from recsys.recommender import Recommender

COMMAND = Command(
    "recsys.recommend",
    "Recommends items for one history, named by titles or ids, or for each "
    "line of a file.",
    [
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        '      --history="Toy Story (1995)" --history="Alien (1979)"',
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        "      --histories=histories.jsonl --output=items.jsonl",
    ],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    list,
    "history",
    "An item of the history, by title or id; repeated, oldest first.",
    group="One history",
)
COMMAND.add_flag(
    str,
    "histories",
    'A file with one query per line: {"query_id": "…", "history": '
    '["item id", …]}, or ids with blanks between; oldest first.',
    group="Many histories",
)
COMMAND.add_flag(
    str,
    "output",
    'The file that gets a line {"query_id", "items", "scores"} per query.',
    group="Many histories",
)
COMMAND.add_flag(int, "k", "How many items, at most.", group="Both", default=10)
COMMAND.add_flag(
    bool,
    "exclude_history",
    "Whether items of the history are left out.",
    group="Both",
    default=True,
)


def main(values: dict[str, Any]) -> int:
    """Recommends for one history or for a file of them.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    path = model_folder(values)
    _check(values)
    # What needs no TensorFlow comes first, so that mistakes are told at once.
    from recsys.data.vocabulary import Vocabulary
    from recsys.training.workdir import Workdir

    folder = Workdir(path)
    folder.read_config()
    if values["histories"] is not None:
        _recommend_file(folder.path, values)
        return 0
    vocabulary = Vocabulary.load(folder.vocabulary)
    texts = [text for text in values["history"] or [] if text.strip()]
    history = [_find(vocabulary, text) for text in texts]
    load_tensorflow()

    from recsys.recommender import load

    _recommend_one(
        load(folder.path), history, values["k"], values["exclude_history"]
    )
    return 0


def _check(values: dict[str, Any]) -> None:
    """Raises InputError for flags that do not go together."""
    if values["k"] < 1:
        raise InputError(f"--k must be at least 1. Received: {values['k']}")
    if values["histories"] is None:
        if values["output"] is not None:
            raise InputError(
                "--output goes with --histories=FILE. Received: "
                f"--output={values['output']} alone"
            )
    elif values["history"]:
        raise InputError(
            "expected either --history or --histories. Received: both"
        )
    elif not values["output"]:
        raise InputError(
            "--histories needs --output=FILE for its answers. Received: none"
        )


def _find(vocabulary: Vocabulary, text: str) -> int:
    """Returns the index of an item of the history.

    A title that no item has is likely to be a slip, and an error that
    suggests others. An id may be of an item that came later than the model:
    it is the unknown item, and said.
    """
    from recsys.data.vocabulary import UNKNOWN_INDEX

    try:
        return vocabulary.find(text)
    except InputError:
        if vocabulary.titles is not None and not text.strip().isdigit():
            raise
    print(f"unknown item, passed over: {text!r}", file=sys.stderr)
    return UNKNOWN_INDEX


def _recommend_one(
    recommender: Recommender, history: list[int], k: int, exclude_history: bool
) -> None:
    """Prints a numbered list."""
    import numpy as np

    vocabulary = recommender.vocabulary
    known = [index for index in history if index > 1]
    if known:
        titles = ", ".join(vocabulary.describe(index) for index in known)
        print(f"After {titles}:\n")
    else:
        print(
            "No known item in the history (name some by --history=…): the "
            "most popular items, scored by their interactions:\n"
        )
    items, scores = recommender.recommend_indices(
        np.array(known, np.int32),
        np.array([0, len(known)], np.int64),
        min(k, vocabulary.num_items),
        exclude_history=exclude_history,
    )
    found = items[0][items[0] > 0].tolist()
    names = [vocabulary.describe(index) for index in found]
    ids = vocabulary.decode(found).tolist()
    rank_width = len(str(len(found)))
    width = max(map(len, names), default=0)
    for rank, (name, item_id, score) in enumerate(
        zip(names, ids, scores[0][: len(found)], strict=True), start=1
    ):
        print(
            f"{rank:>{rank_width}}  {name:<{width}}  id {item_id:<8}  "
            f"{score:.4f}"
        )
    if len(found) < k:
        print(
            f"\nOnly {len(found)} of k={k}: no more items are left to "
            "recommend."
        )


def _recommend_file(workdir: pathlib.Path, values: dict[str, Any]) -> None:
    from recsys import batch_recommend

    histories = pathlib.Path(values["histories"])
    output = pathlib.Path(values["output"])
    batch_recommend.check_files(histories, output)
    load_tensorflow()

    from recsys.recommender import load

    report = batch_recommend.recommend_file(
        load(workdir),
        histories,
        output,
        values["k"],
        exclude_history=values["exclude_history"],
    )
    print(report.describe(values["k"]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
