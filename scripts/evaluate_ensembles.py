"""What the sum of several models' scores is worth on the validation queries.

Run it from the checkout, with the workdirs of models of one log:

    python scripts/evaluate_ensembles.py --workdirs=runs/seed-0,runs/seed-1

Each subset of the models is evaluated. `python -m recsys.combine` makes one
model of those that are worth it.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.combine import check_workdirs, read_workdirs
from recsys.command_line import Command, load_tensorflow
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
    folders = read_workdirs(values["workdirs"])
    config = check_workdirs(folders)
    load_tensorflow()
    import recsys
    from recsys.data.prepare import build_data
    from recsys.evaluation import evaluate

    data = build_data(config)
    models = [recsys.load(folder.path) for folder in folders]
    numbers = range(len(models))
    several = [
        chosen
        for size in range(1, len(models) + 1)
        for chosen in itertools.combinations(numbers, size)
    ]
    rows = []
    for chosen in several:
        found = evaluate(
            Sum([models[number] for number in chosen]),
            data.split.validation,
            protocol=data.split.protocol,
            ks=(10,),
            exclude_history=config.excludes_history,
            lists=False,
        ).metrics()
        names = " + ".join(folders[number].path.name for number in chosen)
        metrics = [f"{found[n]:.4f}" for n in ("recall@10", "ndcg@10")]
        rows.append([names, *metrics])
    print(aligned(["models", "recall@10", "ndcg@10"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
