"""`python -m recsys.recommend`: recommends items for a history, or for many."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import recsys
from recsys.command_line import (
    Command,
    add_beam_flags,
    add_model_flag,
    given_beam_options,
    load_tensorflow,
    model_folder,
    printable,
)
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX

if TYPE_CHECKING:
    import numpy as np

    from recsys.config import TrainConfig
    from recsys.data.sequences import Sequences
    from recsys.data.side_information import Side
    from recsys.data.vocabulary import Vocabulary
    from recsys.recommender import Recommendation, Recommender
    from recsys.reranking import Rules

# Items of the history that --explain names for each recommendation.
_NUM_INFLUENCES = 3
# Items of a user's history that are named, the newest.
_NUM_NAMED = 10

COMMAND = Command(
    "recsys.recommend",
    "Recommends items for one history, named by titles or ids, for users of "
    "the log, or for each line of a file; or finds items similar to one.",
    [
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        '      --history="Toy Story (1995)" --history="Alien (1979)" --explain',
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        '      --user=7 --where="genres has Comedy and year >= 1990"',
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        '      --similar_to="Toy Story (1995)"',
        "python -m recsys.recommend --workdir=runs/movielens-small \\\n"
        "      --users=all --at_most=genres:3 --output=items.parquet",
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
    list,
    "user",
    "A user of the log that the model was trained on, by id; repeatable.",
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
    '["item id", …]}, or ids separated by blanks; oldest first. Where the '
    'model reads features, {"history": [{"item": "…", "time": …, "rating": …}'
    '], "user": {…}, "context": {…}}.',
    group="Many histories",
)
COMMAND.add_flag(
    pathlib.Path,
    "users",
    "Users of the log that the model was trained on: all, or a file of ids, "
    "one per line or in the first column of CSV, TSV or Parquet.",
    group="Many histories",
)
COMMAND.add_flag(
    pathlib.Path,
    "output",
    "The file of the answers. A .csv or .parquet file gets a row per item, any "
    'other a line {"query_id", "items", "scores"} per query.',
    group="Many histories",
)
COMMAND.add_flag(
    str,
    "context",
    "What is known of the request where the model reads that, as JSON: "
    '{"time": "2026-11-28T20:15", "device": "tv"}.',
    group="All",
)
for name, help_text in (
    ("items", "A file of item ids, the only ones to recommend; as for --users"),
    ("exclude", "A file of item ids that are never recommended"),
):
    COMMAND.add_flag(pathlib.Path, name, f"{help_text}.", group="Rules")
COMMAND.add_flag(
    str,
    "where",
    "Which items to recommend, by their columns, such as 'genres has Comedy "
    "and (year >= 1990 or not price > 5)'.",
    group="Rules",
)
COMMAND.add_flag(
    list,
    "at_most",
    "COLUMN:N, to list at most N items with the same value in a column; "
    "repeatable.",
    group="Rules",
)
COMMAND.add_flag(
    float,
    "diversity",
    "How much a list avoids similar items, from 0 to 1.",
    group="Rules",
    default=0.0,
)
COMMAND.add_flag(int, "k", "How many items, at most.", group="All", default=10)
COMMAND.add_flag(
    bool,
    "exclude_history",
    "Whether items of the history are excluded.",
    group="All",
    default=True,
)
add_beam_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Recommends for one history, for users, or for a file of histories.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    path = model_folder(values)
    _check(values)
    beam_options = given_beam_options(values)
    # Errors that need no TensorFlow are reported before it is loaded.
    folder = recsys.workdir.Workdir(path)
    config = folder.read_config()
    vocabulary = recsys.data.vocabulary.Vocabulary.load(folder.vocabulary)
    context = _context(values["context"])
    options = {
        "exclude_history": values["exclude_history"],
        "rules": _rules(values, vocabulary),
    }
    if beam_options is not None:
        summary = recsys.beam_recommendation.recommend(
            folder.path,
            config,
            values["output"],
            values["k"],
            beam_options=beam_options,
            context=context,
            **options,
        )
        print(summary.text(values["k"]), file=sys.stderr)
        return 0
    output = pathlib.Path(values["output"] or "")
    histories, parts, similar_to, history = None, [], 0, []
    if values["histories"] is not None:
        histories = pathlib.Path(values["histories"])
    if values["output"]:
        recsys.histories.check_files(histories, output)
    if values["similar_to"] is not None:
        similar_to = vocabulary.find(values["similar_to"])
    elif values["user"] or values["users"] is not None:
        parts = _users(values, config, vocabulary)
    elif histories is None:
        texts = [text for text in values["history"] or [] if text.strip()]
        history = [_find(vocabulary, text) for text in texts]
    load_tensorflow()
    recommender = recsys.recommender.restore(folder, config, vocabulary)
    if values["output"]:
        summary = recsys.histories.recommend_file(
            recommender,
            histories or parts,
            output,
            values["k"],
            context=context,
            **options,
        )
        print(summary.text(values["k"]), file=sys.stderr)
    elif values["similar_to"] is not None:
        _print_similar(recommender, similar_to, values["k"])
    elif parts:
        _print_users(recommender, parts[0](), context, values, options)
    else:
        request = recsys.data.side_information.Request.of(
            history, context=context
        )
        side, notes = recommender.side_of_one(request)
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
        indices = vocabulary.encode(history)
        _print_recommended(recommender, indices, side, values, options)
    return 0


def _context(text: str | None) -> dict[str, Any]:
    """Returns the JSON object of --context."""
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            '--context must be a JSON object, such as {"time": "2026-11-28"}. '
            f"Received: {text!r}"
        )
    return found


def _print_users(
    recommender: Recommender,
    users: Sequences,
    context: dict[str, Any],
    values: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Prints recommendations for users of the log."""
    for place, user in enumerate(users.user_ids):
        one = users.select([place])
        dislikes = None
        if one.dislikes is not None:
            dislikes = one.dislikes.items, one.dislikes.offsets
        print("\n" * (place > 0) + f"User {printable(user)}")
        _print_recommended(
            recommender,
            one.items,
            recommender.side_of_users(one, context),
            values,
            {**options, "dislikes": dislikes},
        )


def _check(values: dict[str, Any]) -> None:
    """Raises InputError for flags that contradict each other."""
    if values["k"] < 1:
        raise InputError(f"--k must be at least 1. Received: {values['k']}")
    ways = [
        f"--{way}"
        for way in ("history", "histories", "user", "users", "similar_to")
        if values[way] not in (None, [])
    ]
    if values["similar_to"] is not None:
        others = (
            "history histories user users output explain items exclude where "
            "at_most diversity runner"
        )
        given = [f"--{name}" for name in others.split() if values[name]]
        if given:
            raise InputError(
                "--similar_to goes with --k alone. Received: "
                + ", ".join(given)
            )
    if len(ways) > 1:
        raise InputError(
            "expected one of --history, --histories, --user and --users. "
            f"Received: {', '.join(ways)}"
        )
    is_many = ways in (["--histories"], ["--users"])
    if values["explain"] and (is_many or values["output"]):
        raise InputError(
            "--explain goes with --history or --user, without --output. "
            f"Received: {ways[0] if is_many else '--output'}"
        )
    if is_many and not values["output"]:
        raise InputError(
            f"{ways[0]} needs --output=FILE for its answers. Received: none"
        )
    if values["output"] and not is_many and ways != ["--user"]:
        raise InputError(
            "--output goes with --histories=FILE, --users or --user. "
            f"Received: --output={values['output']} alone"
        )
    users = values["users"]
    if users not in (None, "all") and not pathlib.Path(users).is_file():
        raise InputError(f"--users must be all, or a file. Received: {users!r}")
    if values["runner"] is not None and users != "all":
        raise InputError(
            "--runner goes with --users=all. Received: "
            + (ways[0] if ways else f"--runner={values['runner']}")
        )


def _rules(values: dict[str, Any], vocabulary: Vocabulary) -> Rules:
    """Makes the rules of the flags, and prints what they leave."""
    ids = {
        name: recsys.reranking.read_ids(
            pathlib.Path(values[name]),
            lambda text: vocabulary.encode([text])[0] != UNKNOWN_INDEX,
        )
        for name in ("items", "exclude")
        if values[name] is not None
    }
    at_most: dict[str, int] = {}
    for text in values["at_most"] or []:
        column, _, limit = text.rpartition(":")
        if not column or not limit.isdecimal() or column in at_most:
            raise InputError(
                "--at_most must be COLUMN:N, such as genres:2, once for a "
                f"column. Received: {text!r}"
            )
        at_most[column] = int(limit)
    rules = recsys.reranking.Rules.make(
        vocabulary,
        items=ids.get("items"),
        exclude=ids.get("exclude"),
        where=values["where"],
        at_most=at_most,
        diversity=values["diversity"],
    )
    print("".join(f"{note}\n" for note in rules.notes), end="", file=sys.stderr)
    return rules


def _users(
    values: dict[str, Any], config: TrainConfig, vocabulary: Vocabulary
) -> list[Callable[[], Sequences]]:
    """Finds the histories of the users of the flags."""
    parts = recsys.data.prepare.user_histories(config, vocabulary)
    if values["users"] == "all":
        return parts
    user_ids = values["user"] or recsys.reranking.read_ids(
        pathlib.Path(values["users"]),
        lambda text: any(text in part().user_ids for part in parts),
    )
    found = recsys.histories.users_of(parts, user_ids)
    return [lambda: found]


def _find(vocabulary: Vocabulary, text: str) -> str:
    """Returns the raw id of an item of the history.

    A title that no item has is probably a typo, and an error that suggests
    others. An id may belong to an item newer than the model: it is the
    unknown item, and reported.
    """
    try:
        return vocabulary.decode([vocabulary.find(text)])[0]
    except InputError:
        if vocabulary.titles is not None and not text.strip().isdigit():
            raise
    print(f"unknown item, ignored: {text!r}", file=sys.stderr)
    return text


def _print_recommended(
    recommender: Recommender,
    history: np.ndarray,
    side: Side | None,
    values: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Prints recommendations for a history of vocabulary indices."""
    vocabulary = recommender.vocabulary
    known = history[history >= FIRST_ITEM_INDEX].tolist()
    if known:
        named = known[-_NUM_NAMED:] if values["user"] else known
        titles = ", ".join(vocabulary.describe(index) for index in named)
        if len(named) < len(known):
            titles = f"{len(known) - len(named)} others, {titles}"
        print(f"After {printable(titles)}:\n")
    elif side is not None and side.knows_user.any():
        print("By what is known of the user:\n")
    else:
        print(
            "No known item in the history (name some by --history=…): the "
            "most popular items, scored by their interactions:\n"
        )
    offsets = recsys.data.sequences.offsets_of([len(history)])
    listed, scores = recommender.recommend_indices(
        history, offsets, values["k"], side=side, **options
    )
    found = recommender.named(listed[0], scores[0])
    notes: list[str] = []
    if values["explain"] and known:
        notes = [
            "; ".join(
                f"{influence.change:+.4f} {influence.title}"
                for influence in influences[:_NUM_INFLUENCES]
            )
            for influences in recommender.explain_indices(
                history,
                vocabulary.encode([each.item_id for each in found]),
                side,
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
    title = printable(vocabulary.describe(item))
    print(f"Like {title}, by the cosine of vectors:\n")
    _print_list(found)
    if len(found) < k:
        print(f"\nOnly {len(found)} of k={k}: there are no more items.")


def _print_list(found: list[Recommendation], notes: Sequence[str] = ()) -> None:
    """Prints numbered items, each with its note below it if there are any."""
    rank_width = len(str(len(found)))
    names = [printable(each.title) for each in found]
    width = max(map(len, names), default=0)
    for place, (name, item) in enumerate(zip(names, found, strict=True)):
        print(
            f"{place + 1:>{rank_width}}  {name:<{width}}  "
            f"id {printable(item.item_id):<8}  {item.score:.4f}"
        )
        if notes:
            print(f"{'':>{rank_width}}    {printable(notes[place])}")


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
