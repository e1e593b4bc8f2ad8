"""`python -m recsys.recommend`: items for a history, or for many."""

from __future__ import annotations

import pathlib
import sys
from typing import TYPE_CHECKING, Any

from recsys.command_line import (
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
)
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.data.vocabulary import Vocabulary
    from recsys.recommender import Recommender

# Items of the history that --explain names for each recommendation.
_NUM_INFLUENCES = 3

COMMAND = Command(
    "recsys.recommend",
    "Recommends items for one history, named by titles or ids, or for each "
    "line of a file; or finds items like one.",
    [
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        '      --history="Toy Story (1995)" --history="Alien (1979)" --explain',
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        '      --similar_to="Toy Story (1995)"',
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
    bool,
    "explain",
    "Whether to say which items of the history moved each score most: by how "
    "much it would differ without them.",
    group="One history",
    default=False,
)
COMMAND.add_flag(
    str,
    "similar_to",
    "An item, by title or id: the items whose vectors are most like its own.",
    group="Similar items",
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
COMMAND.add_flag(int, "k", "How many items, at most.", group="All", default=10)
COMMAND.add_flag(
    bool,
    "exclude_history",
    "Whether items of the history are left out.",
    group="All",
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
    from recsys.workdir import Workdir

    folder = Workdir(path)
    folder.read_config()
    if values["histories"] is not None:
        _recommend_file(folder.path, values)
        return 0
    vocabulary = Vocabulary.load(folder.vocabulary)
    if values["similar_to"] is not None:
        item = vocabulary.find(values["similar_to"])
        load_tensorflow()
        from recsys.recommender import load

        _show_similar(load(folder.path), item, values["k"])
        return 0
    texts = [text for text in values["history"] or [] if text.strip()]
    history = [_find(vocabulary, text) for text in texts]
    load_tensorflow()

    from recsys.recommender import load

    _recommend_one(
        load(folder.path),
        history,
        values["k"],
        values["exclude_history"],
        values["explain"],
    )
    return 0


def _check(values: dict[str, Any]) -> None:
    """Raises InputError for flags that do not go together."""
    if values["k"] < 1:
        raise InputError(f"--k must be at least 1. Received: {values['k']}")
    if values["similar_to"] is not None:
        others = ("history", "histories", "output", "explain")
        given = [f"--{name}" for name in others if values[name]]
        if given:
            raise InputError(
                "--similar_to goes with --k alone. Received: "
                + ", ".join(given)
            )
    if values["histories"] is not None and values["explain"]:
        raise InputError("--explain goes with --history. Received: --histories")
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
    from recsys.ids import UNKNOWN_INDEX

    try:
        return vocabulary.find(text)
    except InputError:
        if vocabulary.titles is not None and not text.strip().isdigit():
            raise
    print(f"unknown item, passed over: {text!r}", file=sys.stderr)
    return UNKNOWN_INDEX


def _recommend_one(
    recommender: Recommender,
    history: list[int],
    k: int,
    exclude_history: bool,
    explain: bool,
) -> None:
    """Prints a numbered list."""
    import numpy as np

    vocabulary = recommender.vocabulary
    known = np.array([index for index in history if index > 1], np.int32)
    if len(known):
        titles = ", ".join(vocabulary.describe(index) for index in known)
        print(f"After {titles}:\n")
    else:
        print(
            "No known item in the history (name some by --history=…): the "
            "most popular items, scored by their interactions:\n"
        )
    items, scores = recommender.recommend_indices(
        known,
        np.array([0, len(known)], np.int64),
        min(k, vocabulary.num_items),
        exclude_history=exclude_history,
    )
    found = items[0][items[0] > 0]
    notes = None
    if explain and len(known):
        notes = [
            "; ".join(
                f"{influence.change:+.4f} {influence.title}"
                for influence in influences[:_NUM_INFLUENCES]
            )
            for influences in recommender.explain_indices(known, found)
        ]
    _show(
        [vocabulary.describe(index) for index in found],
        vocabulary.decode(found).tolist(),
        scores[0][: len(found)].tolist(),
        notes,
    )
    if len(found) < k:
        print(
            f"\nOnly {len(found)} of k={k}: no more items are left to "
            "recommend."
        )


def _show_similar(recommender: Recommender, item: int, k: int) -> None:
    """Prints the items whose vectors are most like an item's."""
    vocabulary = recommender.vocabulary
    found = recommender.similar(
        vocabulary.decode([item])[0], min(k, vocabulary.num_items)
    )
    print(f"Like {vocabulary.describe(item)}, by the cosine of vectors:\n")
    _show(
        [each.title for each in found],
        [each.item_id for each in found],
        [each.score for each in found],
    )
    if len(found) < k:
        print(f"\nOnly {len(found)} of k={k}: there are no more items.")


def _show(
    names: list[str],
    ids: list[str],
    scores: list[float],
    notes: list[str] | None = None,
) -> None:
    """Prints numbered items, with a note under each where there are some."""
    rank_width = len(str(len(names)))
    width = max(map(len, names), default=0)
    for place, (name, item_id, score) in enumerate(
        zip(names, ids, scores, strict=True)
    ):
        print(
            f"{place + 1:>{rank_width}}  {name:<{width}}  id {item_id:<8}  "
            f"{score:.4f}"
        )
        if notes is not None:
            print(f"{'':>{rank_width}}    {notes[place]}")


def _recommend_file(workdir: pathlib.Path, values: dict[str, Any]) -> None:
    from recsys import histories

    source = pathlib.Path(values["histories"])
    output = pathlib.Path(values["output"])
    histories.check_files(source, output)
    load_tensorflow()

    from recsys.recommender import load

    report = histories.recommend_file(
        load(workdir),
        source,
        output,
        values["k"],
        exclude_history=values["exclude_history"],
    )
    print(report.summary(values["k"]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
