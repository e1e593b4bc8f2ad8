"""Compares the losses: full softmax, and sampled from each source.

Run it from the checkout:

    python scripts/evaluate_losses.py
    python scripts/evaluate_losses.py --preset=movielens-1m --data=ml-1m

Each variant is trained as by `python -m recsys.train` with the same preset,
seed and flags, into `<workdir>/<variant>`; a run that is there is resumed or
left as it is. The table shows test results, differences to the full softmax
and the time of an epoch.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

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
from recsys.data.prepare import PreparedData, build_data, choose
from recsys.errors import InputError
from recsys.files import write_json

# What each variant changes in the configuration.
VARIANTS: dict[str, dict[str, Any]] = {
    "full_softmax": {},
    "in_batch_uncorrected": {
        "negatives": "in_batch",
        "logq_correction": False,
    },
    "in_batch": {"negatives": "in_batch"},
    "uniform": {"negatives": "uniform"},
    "popularity": {"negatives": "popularity"},
    "mixed": {"negatives": "mixed"},
    "mixed_rowwise_adagrad": {
        "negatives": "mixed",
        "table_optimizer": "rowwise_adagrad",
    },
    "mixed_dense": {"negatives": "mixed", "table_optimizer": "dense"},
}
_METRICS = ("recall@10", "ndcg@10")

COMMAND = Command(
    "evaluate_losses",
    "Trains with the full softmax and with sampled ones, and compares.",
    [
        "scripts/evaluate_losses.py",
        "scripts/evaluate_losses.py --preset=movielens-1m --data=ml-1m",
    ],
)
_FOLDER = "runs/losses-<preset>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(
    str,
    "variants",
    "Which to train, with commas between.",
    group="Run",
    default=",".join(VARIANTS),
)
_OWN_FIELDS = ("loss", "negatives", "logq_correction", "table_optimizer")
_FIELDS = [
    field
    for field in make_config("movielens-small", {}).to_dict()
    if field not in _OWN_FIELDS
]
add_config_flags(COMMAND, _FIELDS)


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    names = values["variants"].split(",")
    for name in names:
        if name not in VARIANTS:
            raise InputError(
                f"--variants must be of {', '.join(VARIANTS)}. "
                f"Received: {name!r}"
            )
    config = make_config(values["preset"], given_fields(values))
    workdir = run_folder(values, _FOLDER)
    data = build_data(config)
    config, _ = choose(config, data)
    load_tensorflow()
    rows: dict[str, dict[str, float]] = {}
    for name in names:
        if name == "full_softmax":
            # What was given for the sampled variants is not for this one.
            variant = config.with_full_softmax()
        else:
            fields = {"loss": "sampled_softmax", **VARIANTS[name]}
            variant = dataclasses.replace(config, **fields)
        rows[name] = _train_and_test(variant, workdir / name, data)
        print(f"{name}: {rows[name]}", flush=True)
    print(f"\n{_table(rows)}")
    write_json(
        workdir / "losses.json", {"config": config.to_dict(), "results": rows}
    )
    return 0


def _train_and_test(
    config: TrainConfig, workdir: pathlib.Path, data: PreparedData
) -> dict[str, float]:
    """Returns a variant's test metrics and the time of its epochs."""
    import recsys
    from recsys.evaluation import evaluate
    from recsys.training import train

    run = train(config, workdir, data=data, evaluate=False)
    evaluation = evaluate(
        recsys.load(run.workdir),
        run.data.split.reported[0],
        protocol=run.data.split.protocol,
        exclude_history=config.excludes_history,
        lists=False,
    )
    metrics = evaluation.metrics()
    return {
        **{name: metrics[name] for name in _METRICS},
        "best_epoch": run.best_epoch + 1,
        "epoch_seconds": float(np.median([e["seconds"] for e in run.history])),
    }


def _table(rows: dict[str, dict[str, float]]) -> str:
    """Lays the results out as Markdown."""
    lines = [
        "| loss | Recall@10 | NDCG@10 | NDCG@10 to full | best epoch | "
        "s an epoch |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    full = rows.get("full_softmax")
    for name, row in rows.items():
        change = (
            "" if full is None else f"{row['ndcg@10'] / full['ndcg@10']:.3f}"
        )
        lines.append(
            f"| {name.replace('_', ' ')} | {row['recall@10']:.4f} | "
            f"{row['ndcg@10']:.4f} | {change} | {row['best_epoch']} | "
            f"{row['epoch_seconds']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
