"""Reproduces the README's accuracy table: several seeds, mean and spread.

Run it from the checkout:

    python scripts/evaluate_movielens.py
    python scripts/evaluate_movielens.py --preset=movielens-1m --data=ml-1m \
        --seeds=0,1,2

Each seed is trained into a workdir of its own, `<workdir>/seed-<n>`, by the
same function as `python -m recsys.train`; a run that is there is resumed or
left as it is. Training looks at the validation queries only. The test queries
are read here, after the last seed is trained, once for each seed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import platform
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

if TYPE_CHECKING:
    from recsys.training import TrainResult

_METRICS = ("recall@10", "ndcg@10")

COMMAND = Command(
    "evaluate_movielens",
    "Trains with several seeds and prints each test result, their mean and "
    "spread, beside the baselines.",
    ["scripts/evaluate_movielens.py --seeds=0,1,2"],
)
_FOLDER = "runs/evaluate-<preset>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(
    str, "seeds", "With commas between.", group="Run", default="0,1,2"
)
add_config_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    seeds = parse_seeds(values["seeds"])
    config = make_config(values["preset"], given_fields(values))
    workdir = run_folder(values, _FOLDER)
    load_tensorflow()
    runs = [train_seed(config, seed, workdir) for seed in seeds]
    rows, table = test_runs(config, runs)
    print(f"seed {seeds[0]} beside baselines:\n\n{table}\n")
    mean = {n: mean_and_spread([row[n] for row in rows]) for n in _METRICS}
    minutes = [sum(e["seconds"] for e in run.history) / 60 for run in runs]
    for seed, row, run, time in zip(seeds, rows, runs, minutes, strict=True):
        print(
            f"seed {seed}: "
            + "  ".join(f"{name} {row[name]:.4f}" for name in _METRICS)
            + f"  ({len(run.history)} epochs, best {run.best_epoch + 1}, "
            f"{time:.1f} minutes of training)"
        )
    if len(seeds) > 1:
        print(
            f"mean of {len(seeds)} seeds ± standard deviation: "
            + "  ".join(
                f"{name} {average:.4f} ± {spread:.4f}"
                for name, (average, spread) in mean.items()
            )
        )
    write_json(
        workdir / "seeds.json",
        {
            "machine": platform.machine(),
            "config": config.to_dict(),
            "seeds": seeds,
            "results": rows,
            "minutes": minutes,
            "mean": {name: value[0] for name, value in mean.items()},
            "standard_deviation": {
                name: value[1] for name, value in mean.items()
            },
        },
    )
    return 0


def parse_seeds(text: str) -> list[int]:
    """Reads seeds with commas between.

    Raises:
        InputError: One is no whole number.
    """
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError as error:
        raise InputError(
            "--seeds must be whole numbers with commas between. "
            f"Received: {text!r}"
        ) from error


def train_seed(
    config: TrainConfig, seed: int, workdir: pathlib.Path
) -> TrainResult:
    """Trains with a seed into a workdir of its own, or leaves it as it is.

    Args:
        config: The configuration.
        seed: Its seed.
        workdir: The folder of all seeds.
    """
    from recsys.training import train

    return train(
        dataclasses.replace(config, seed=seed),
        workdir / f"seed-{seed}",
        evaluate=False,
    )


def test_runs(
    config: TrainConfig, runs: list[TrainResult]
) -> tuple[list[dict[str, float]], str]:
    """Reads the test queries.

    Args:
        config: The configuration of all runs.
        runs: The trained runs.

    Returns:
        The test metrics of each run, and a table of the first one beside
        baselines.
    """
    import recsys
    from recsys.evaluation import evaluate
    from recsys.evaluation.comparison import compare_with_baselines

    exclude_history = config.excludes_history
    first, *others = runs
    results = compare_with_baselines(
        recsys.load(first.workdir),
        first.data.split,
        first.data.vocabulary.size,
        exclude_history=exclude_history,
    )
    rows = [results.model.metrics()]
    for run in others:
        evaluation = evaluate(
            recsys.load(run.workdir),
            run.data.split.reported[0],
            protocol=run.data.split.protocol,
            exclude_history=exclude_history,
            lists=False,
        )
        rows.append(evaluation.metrics())
    return rows, results.table(intervals=True)


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation, 0 for one value."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(spread)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
