"""Reproduces the cold-start table: items that nobody has interacted with.

Run it from the checkout:

    python scripts/evaluate_cold_start.py
    python scripts/evaluate_cold_start.py --preset=movielens-1m --data=ml-1m

A fifth of the items is held out of training altogether (split
`held_out_items`). Two models are trained on the rest, one of ids alone and one
with item features, into `<workdir>/ids` and `<workdir>/features`. Then both
are asked for the held-out items, once among all items, as in use, and once
among the held-out ones, where popularity cannot help.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import TrainConfig, make_config
from recsys.errors import InputError
from recsys.files import write_json
from recsys.ids import FIRST_ITEM_INDEX

if TYPE_CHECKING:
    from recsys.data.prepare import PreparedData
    from recsys.evaluation import Evaluation, Recommender

_METRICS = ("recall@10", "ndcg@10", "recall@50")

COMMAND = Command(
    "evaluate_cold_start",
    "Holds items out of training and asks for them: random, popularity, a "
    "model of ids alone and one with item features.",
    [
        "scripts/evaluate_cold_start.py",
        "scripts/evaluate_cold_start.py --seed=1",
    ],
)
_FOLDER = "runs/cold-start-<preset>-<seed>"
add_run_flags(COMMAND, _FOLDER)
add_config_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    given = {"item_features": "auto", "split": "held_out_items"}
    config = make_config(values["preset"], {**given, **given_fields(values)})
    if config.split != "held_out_items" or not config.item_features:
        raise InputError(
            "--split and --item_features must be held_out_items and some "
            f"columns. Received: {config.split!r}, {config.item_features!r}"
        )
    workdir = run_folder(values, _FOLDER.replace("<seed>", str(config.seed)))
    from recsys.data.prepare import build_data

    data = build_data(config)
    load_tensorflow()
    recommenders = _recommenders(config, data, workdir)
    items = np.arange(FIRST_ITEM_INDEX, data.vocabulary.size)
    cold = np.setdiff1d(items, data.split.train.items)
    results = {}
    for among, candidates in (("all", items), ("held-out", cold)):
        results[among] = show(recommenders, data, candidates, config)
    write_json(
        workdir / "cold_start.json",
        {
            "config": config.to_dict(),
            "num_held_out_items": len(cold),
            "results": results,
        },
    )
    return 0


def _recommenders(
    config: TrainConfig, data: PreparedData, workdir: pathlib.Path
) -> list[Recommender]:
    """Trains both models; they come last, behind the baselines."""
    import recsys
    from recsys.baselines import Popularity
    from recsys.training import train

    ids_only = dataclasses.replace(
        config, item_features=None, id_dropout=TrainConfig.id_dropout
    )
    models = []
    for name, each in (("ids", ids_only), ("features", config)):
        run = train(each, workdir / name, data=data, evaluate=False)
        models.append(recsys.load(run.workdir))
        models[-1].name = f"two-tower, {name}"
    return [
        Random(data.vocabulary.size),
        Popularity.fit(data.split.train, data.vocabulary.size),
        WithoutUnseen(models[0], data.split.train.items),
        models[1],
    ]


def show(
    recommenders: list[Recommender],
    data: PreparedData,
    candidates: np.ndarray,
    config: TrainConfig,
) -> dict[str, dict[str, float]]:
    """Prints the table among some candidates.

    Args:
        recommenders: What is compared; the last two once more, by query.
        data: The log and its split.
        candidates: Indices of the items.
        config: Says whether items of a history are candidates.

    Returns:
        The metrics by recommender and name.
    """
    from recsys.evaluation import compare, evaluate, results_table

    queries = data.split.test
    assert queries is not None  # This split has test queries.
    evaluations: list[Evaluation] = [
        dataclasses.replace(
            evaluate(
                Among(each, candidates),
                queries,
                protocol=data.split.protocol,
                ks=(10, 50),
                lists=False,
                exclude_history=config.excludes_history,
            ),
            num_items=len(candidates),
        )
        for each in recommenders
    ]
    print(f"\n{results_table(evaluations, _METRICS, intervals=True)}")
    for name, found in compare(evaluations[-1], evaluations[-2]).items():
        if name in _METRICS:
            print(
                f"{name}: features {found.difference.mean:+.4f} over ids "
                f"[{found.difference.low:+.4f}, {found.difference.high:+.4f}]"
                f", p = {found.p_value:.2g}"
            )
    return {each.name: each.metrics() for each in evaluations}


class Random:
    """Scores at random.

    Args:
        vocabulary_size: Number of items, padding and unknown included.
    """

    name = "random"

    def __init__(self, vocabulary_size: int) -> None:
        self._size = vocabulary_size
        self._rng = np.random.default_rng(0)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns `[num_queries, vocabulary_size]` float32."""
        shape = (len(offsets) - 1, self._size)
        return self._rng.random(shape, np.float32)


class WithoutUnseen:
    """A model of ids that passes over what it has never seen in histories.

    The rows of such items are noise, which would be held against it.

    Args:
        recommender: The model.
        trained: The items of the training interactions, in any order.
    """

    def __init__(self, recommender: Recommender, trained: np.ndarray) -> None:
        self.name = recommender.name
        self._recommender = recommender
        self._trained = np.unique(trained)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns `[num_queries, vocabulary_size]` float32."""
        seen = np.isin(items, self._trained)
        before = np.append(0, np.cumsum(seen))
        return self._recommender.scores(items[seen], before[offsets])


class Among:
    """A recommender that chooses among some items only.

    Args:
        recommender: The recommender.
        candidates: Indices of the items.
    """

    def __init__(
        self, recommender: Recommender, candidates: np.ndarray
    ) -> None:
        self.name = recommender.name
        self._recommender = recommender
        self._candidates = candidates

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns `[num_queries, vocabulary_size]`, -inf for the others."""
        scores = self._recommender.scores(items, offsets)
        among = np.full_like(scores, -np.inf)
        among[:, self._candidates] = scores[:, self._candidates]
        return among


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
