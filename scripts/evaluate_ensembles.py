"""What the sum of several models' scores is worth on the validation queries.

Run it from the checkout, with the workdirs of models of one log:

    python scripts/evaluate_ensembles.py --workdirs=runs/seed-0,runs/seed-1

A sum of dot products is one dot product of longer vectors, so an ensemble of
two-tower models is a two-tower model as well. Each subset of the models is
evaluated on the validation queries. With `--test`, the test queries are read as
well, for all models together: once, at the end.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.command_line import Command, load_tensorflow
from recsys.config import parse_names
from recsys.errors import InputError
from recsys.evaluation.results import aligned

if TYPE_CHECKING:
    from recsys.data.splits import Queries
    from recsys.recommender import Recommender

COMMAND = Command(
    "evaluate_ensembles",
    "Evaluates sums of models' scores on the validation queries.",
    ["scripts/evaluate_ensembles.py --workdirs=runs/seed-0,runs/seed-1"],
)
COMMAND.add_flag(
    str,
    "workdirs",
    "Of at least two models of the same log and split, with commas between.",
    group="Run",
)
COMMAND.add_flag(
    bool,
    "test",
    "Read the test queries as well, for all models together: once, at the end.",
    group="Run",
)
# What of a log a model reads.
_READ = (
    "event_features",
    "time_features",
    "context_features",
    "user_features",
)


class Sum:
    """Scores with several models at once.

    Args:
        models: The models, of one vocabulary.
    """

    name = "sum"

    def __init__(self, models: Sequence[Recommender]) -> None:
        self._models = models

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """`[num_queries, vocabulary_size]` float32, for histories alone."""
        return np.sum([m.scores(items, offsets) for m in self._models], axis=0)

    def query_scores(self, queries: Queries, rows: np.ndarray) -> np.ndarray:
        """Likewise, for queries with what is known of them."""
        found = [model.query_scores(queries, rows) for model in self._models]
        return np.sum(found, axis=0)


def main(values: dict[str, Any]) -> int:
    """Evaluates and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    folders = [pathlib.Path(x) for x in parse_names(values["workdirs"] or "")]
    if len(folders) < 2:
        raise InputError(
            "--workdirs must name at least two. Received: "
            f"{values['workdirs']!r}"
        )
    load_tensorflow()
    import recsys
    from recsys.data.prepare import build_data, same_training_items
    from recsys.evaluation import evaluate
    from recsys.workdir import Workdir

    configs = [Workdir(folder).read_config() for folder in folders]
    config = configs[0]
    for folder, other in zip(folders, configs, strict=True):
        # Columns that were not read would count as unknown.
        if wrong := [
            n for n in _READ if getattr(other, n) != getattr(config, n)
        ]:
            raise InputError(
                f"--workdirs must agree on {', '.join(_READ)}. Received: "
                f"{folder} with another {wrong[0]} than {folders[0]}"
            )
    data = build_data(config)
    models = [recsys.load(folder) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        if not same_training_items(data.vocabulary, model.vocabulary):
            raise InputError(
                f"--workdirs must be of one log and split. Received: {folder} "
                f"of other items than {folders[0]}"
            )
    numbers = range(len(models))
    several = [
        (chosen, data.split.validation, "")
        for size in range(1, len(models) + 1)
        for chosen in itertools.combinations(numbers, size)
    ]
    if values["test"]:
        several.append((tuple(numbers), data.split.reported[0], ", test"))
    rows = []
    for chosen, queries, which in several:
        found = evaluate(
            Sum([models[number] for number in chosen]),
            queries,
            protocol=data.split.protocol,
            ks=(10,),
            exclude_history=config.excludes_history,
            lists=False,
        ).metrics()
        names = " + ".join(folders[number].name for number in chosen)
        metrics = [f"{found[n]:.4f}" for n in ("recall@10", "ndcg@10")]
        rows.append([names + which, *metrics])
    print(aligned(["models", "recall@10", "ndcg@10"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
