"""Reproduces the tables of item features: new items, and known ones.

Run it from the checkout:

    python scripts/evaluate_cold_start.py --seeds=0,1,2
    python scripts/evaluate_cold_start.py --seeds=0,1,2 --split=leave_last_out

A fifth of the items is held out of training altogether (split
`held_out_items`). Two models are trained on the rest, one of ids alone and one
with item features, into `<workdir>/<seed>/ids` and `<workdir>/<seed>/features`.
Then both are asked for the held-out items, once among all items, as in use, and
once among the held-out ones, where popularity cannot help. What both reach on
the validation queries, which ask for known items, is printed for any split;
with another one that is all, and no test query is read.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from evaluate_movielens import mean_and_spread, parse_seeds

from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import FIELDS, TrainConfig, make_config
from recsys.errors import InputError
from recsys.files import write_json
from recsys.ids import FIRST_ITEM_INDEX

if TYPE_CHECKING:
    from recsys.data.prepare import PreparedData
    from recsys.evaluation import Evaluation, Recommender

_METRICS = ("recall@10", "ndcg@10", "recall@50")
_VALIDATION = _METRICS[:2]
MODELS = ("ids", "features")

COMMAND = Command(
    "evaluate_cold_start",
    "Holds items out of training and asks for them: random, popularity, a "
    "model of ids alone and one with item features.",
    ["scripts/evaluate_cold_start.py --seeds=0,1,2"],
)
_FOLDER = "runs/cold-start-<preset>-<split>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(str, "seeds", "With commas between.", group="Run", default="0")
add_config_flags(COMMAND, [name for name in FIELDS if name != "seed"])


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    given: dict[str, Any] = {
        "item_features": "auto",
        "split": "held_out_items",
        # Transitions would be read by the model of ids alone.
        "transition_dim": 0,
    }
    config = make_config(values["preset"], {**given, **given_fields(values)})
    if not config.item_features:
        raise InputError("--item_features must be some columns. Received: ''")
    workdir = run_folder(values, _FOLDER.replace("<split>", config.split))
    load_tensorflow()
    found = []
    for seed in parse_seeds(values["seeds"]):
        each = dataclasses.replace(config, seed=seed)
        found.append(_evaluate(each, workdir / str(seed)))
    print(f"\nknown items, validation, {len(found)} seeds:")
    for name, metric in itertools.product(MODELS, _VALIDATION):
        known = [each["known"][name][metric] for each in found]
        mean, spread = mean_and_spread(known)
        listed = ", ".join(f"{value:.4f}" for value in known)
        print(f"{name} {metric} {mean:.4f} ± {spread:.4f} ({listed})")
    write_json(
        workdir / "cold_start.json",
        {"config": config.to_dict(), "results": found},
    )
    return 0


def _evaluate(config: TrainConfig, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains both models of a seed and prints what they do for new items."""
    import recsys
    from recsys.baselines import Popularity
    from recsys.data.prepare import build_data, choose
    from recsys.training import train

    data = build_data(config)
    config, _ = choose(config, data)
    ids_only = dataclasses.replace(config, item_features=None, id_dropout=None)
    known, models = {}, []
    for name, each in zip(MODELS, (ids_only, config), strict=True):
        run = train(each, workdir / name, data=data, evaluate=False)
        best = run.history[run.best_epoch]
        known[name] = {m: best[f"validation_{m}"] for m in _VALIDATION}
        models.append(recsys.load(run.workdir))
        models[-1].name = f"two-tower, {name}"
    if config.split != "held_out_items":
        return {"seed": config.seed, "known": known}
    recommenders = [
        Random(data.vocabulary.size),
        Popularity.fit(data.split.train, data.vocabulary.size),
        WithoutUnseen(models[0], data.split.train.items),
        models[1],
    ]
    items = np.arange(FIRST_ITEM_INDEX, data.vocabulary.size)
    cold = np.setdiff1d(items, data.split.train.items)
    results = {
        among: show(recommenders, data, candidates, config)
        for among, candidates in (("all", items), ("held-out", cold))
    }
    return {
        "seed": config.seed,
        "known": known,
        "num_held_out_items": len(cold),
        "results": results,
    }


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
