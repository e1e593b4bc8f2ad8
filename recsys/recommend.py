"""`python -m recsys.recommend`: recommends items for a history, or for many."""

from __future__ import annotations

import pathlib
import sys
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import recsys
from recsys.command_line import (
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
)
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX

if TYPE_CHECKING:
    from recsys.data.vocabulary import Vocabulary
    from recsys.recommender import Recommendation, Recommender

# Items of the history that --explain names for each recommendation.
_NUM_INFLUENCES = 3

COMMAND = Command(
    "recsys.recommend",
    "Recommends items for one history, named by titles or ids, or for each "
    "line of a file; or finds items similar to one.",
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
    "Whether to print the items of the history that changed each score most, "
    "compared with the score without them.",
    group="One history",
    default=False,
)
COMMAND.add_flag(
    str,
    "similar_to",
    "An item, by title or id, to find the items with the most similar vectors.",
    group="Similar items",
)
COMMAND.add_flag(
    pathlib.Path,
    "histories",
    'A file with one query per line: {"query_id": "…", "history": '
    '["item id", …]}, or ids separated by blanks; oldest first.',
    group="Many histories",
)
COMMAND.add_flag(
    pathlib.Path,
    "output",
    'The file that gets a line {"query_id", "items", "scores"} per query.',
    group="Many histories",
)
COMMAND.add_flag(int, "k", "How many items, at most.", group="All", default=10)
COMMAND.add_flag(
    bool,
    "exclude_history",
    "Whether items of the history are excluded.",
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
    # Errors that need no TensorFlow are reported before it is loaded.
    folder = recsys.workdir.Workdir(path)
    config = folder.read_config()
    vocabulary = recsys.data.vocabulary.Vocabulary.load(folder.vocabulary)
    items: list[int] = []
    if values["histories"] is not None:
        recsys.histories.check_files(*_files(values))
    elif values["similar_to"] is not None:
        items = [vocabulary.find(values["similar_to"])]
    else:
        texts = [text for text in values["history"] or [] if text.strip()]
        items = [_find(vocabulary, text) for text in texts]
    load_tensorflow()
    recommender = recsys.recommender.restore(folder, config, vocabulary)
    if values["histories"] is not None:
        summary = recsys.histories.recommend_file(
            recommender,
            *_files(values),
            values["k"],
            exclude_history=values["exclude_history"],
        )
        print(summary.text(values["k"]), file=sys.stderr)
    elif values["similar_to"] is not None:
        _print_similar(recommender, items[0], values["k"])
    else:
        _print_recommended(recommender, items, values)
    return 0


def _check(values: dict[str, Any]) -> None:
    """Raises InputError for flags that contradict each other."""
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


def _files(values: dict[str, Any]) -> tuple[pathlib.Path, pathlib.Path]:
    return pathlib.Path(values["histories"]), pathlib.Path(values["output"])


def _find(vocabulary: Vocabulary, text: str) -> int:
    """Returns the index of an item of the history.

    A title that no item has is probably a typo, and an error that suggests
    others. An id may belong to an item newer than the model: it is the
    unknown item, and reported.
    """
    try:
        return vocabulary.find(text)
    except InputError:
        if vocabulary.titles is not None and not text.strip().isdigit():
            raise
    print(f"unknown item, ignored: {text!r}", file=sys.stderr)
    return UNKNOWN_INDEX


def _print_recommended(
    recommender: Recommender, history: list[int], values: dict[str, Any]
) -> None:
    """Prints recommendations for a history of vocabulary indices."""
    vocabulary = recommender.vocabulary
    known = [index for index in history if index >= FIRST_ITEM_INDEX]
    if known:
        titles = ", ".join(vocabulary.describe(index) for index in known)
        print(f"After {_printable(titles)}:\n")
    else:
        print(
            "No known item in the history (name some by --history=…): the "
            "most popular items, scored by their interactions:\n"
        )
    ids = vocabulary.decode(known).tolist()
    found = recommender.recommend(
        ids, values["k"], exclude_history=values["exclude_history"]
    )
    notes: list[str] = []
    if values["explain"] and known:
        notes = [
            "; ".join(
                f"{influence.change:+.4f} {influence.title}"
                for influence in influences[:_NUM_INFLUENCES]
            )
            for influences in recommender.explain_indices(
                vocabulary.encode(ids),
                vocabulary.encode([each.item_id for each in found]),
            )
        ]
    _print_list(found, notes)
    if len(found) < values["k"]:
        print(
            f"\nOnly {len(found)} of k={values['k']}: no more items are left "
            "to recommend."
        )


def _print_similar(recommender: Recommender, item: int, k: int) -> None:
    """Prints the items whose vectors are most similar to an item's."""
    vocabulary = recommender.vocabulary
    found = recommender.similar(vocabulary.decode([item])[0], k)
    title = _printable(vocabulary.describe(item))
    print(f"Like {title}, by the cosine of vectors:\n")
    _print_list(found)
    if len(found) < k:
        print(f"\nOnly {len(found)} of k={k}: there are no more items.")


def _print_list(found: list[Recommendation], notes: Sequence[str] = ()) -> None:
    """Prints numbered items, each with its note below it if there are any."""
    rank_width = len(str(len(found)))
    names = [_printable(each.title) for each in found]
    width = max(map(len, names), default=0)
    for place, (name, item) in enumerate(zip(names, found, strict=True)):
        print(
            f"{place + 1:>{rank_width}}  {name:<{width}}  "
            f"id {_printable(item.item_id):<8}  {item.score:.4f}"
        )
        if notes:
            print(f"{'':>{rank_width}}    {_printable(notes[place])}")


def _printable(text: str) -> str:
    """Escapes characters that could control a terminal."""
    return "".join(
        character
        if character.isprintable() or unicodedata.category(character) == "Zs"
        else ascii(character)[1:-1]
        for character in text
    )


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
