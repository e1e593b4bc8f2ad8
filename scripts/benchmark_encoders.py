"""Compares the history encoders, each with the settings of a preset.

Run it from the checkout, on an otherwise idle machine:

    python scripts/benchmark_encoders.py
    python scripts/benchmark_encoders.py --preset=movielens-1m --data=ml-1m

Each encoder is trained into `<workdir>/<encoder>` by the same function as
`python -m recsys.train`, with the settings of the preset and those of `TUNED`,
which were found on the validation queries; a run that is there is resumed or
left as it is. The epoch that is kept is chosen on the validation queries. The
test queries are read here, once, after the last training. A flag for a
configuration field counts for every encoder, in place of what is tuned.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from typing import Any

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked

from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import ENCODERS, TrainConfig, default_preset, make_config
from recsys.data.prepare import build_data
from recsys.errors import InputError
from recsys.evaluation import evaluate
from recsys.evaluation.results import aligned
from recsys.metrics import parse_metric

_METRICS = ("recall@10", "ndcg@10")
# By preset and encoder, what differs from the preset.
TUNED: dict[str, dict[str, dict[str, Any]]] = {
    "movielens-1m": {
        # A mean says most of few items. It has no work of its own, so that
        # the full softmax would be nearly all there is to do.
        "mean_pooling": {
            "max_history_length": 3,
            "embedding_dim": 64,
            "item_dropout": 0.0,
            "loss": "sampled_softmax",
            "num_negatives": 256,
            "positions_per_batch": 12_800,
            "learning_rate": 0.01,
            "warmup_steps": 50,
            "num_epochs": 10,
        },
        # One position after the other: many rows at once cost less.
        "gru": {
            "item_dropout": 0.0,
            "positions_per_batch": 12_800,
            "learning_rate": 0.004,
            "num_epochs": 8,
        },
    },
}

COMMAND = Command(
    "benchmark_encoders",
    "Trains each history encoder and prints accuracy and cost.",
    ["scripts/benchmark_encoders.py --preset=movielens-1m --data=ml-1m"],
)
_FOLDER = "runs/encoders-<preset>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(
    str,
    "encoders",
    "Which, with commas between.",
    group="Run",
    default="mean_pooling,gru,self_attention",
)
add_json_flag(COMMAND)
add_config_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Trains, measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    names = values["encoders"].split(",")
    unknown = [name for name in names if name not in ENCODERS]
    if unknown or values["encoder"] is not None:
        raise InputError(
            "--encoders must be one or more of "
            f"{', '.join(ENCODERS)}, and --encoder not be given. "
            f"Received: {values['encoder'] or unknown[0]!r}"
        )
    check_output_file(values)
    workdir = run_folder(values, _FOLDER)
    configs = {name: encoder_config(values, name) for name in names}
    load_tensorflow()
    rows = _measure(configs, workdir)
    print(table(rows))
    write_if_asked(values, rows)
    return 0


def encoder_config(values: dict[str, Any], encoder: str) -> TrainConfig:
    """Returns the configuration of an encoder."""
    given = given_fields(values)
    preset = values["preset"] or default_preset(None)
    tuned = TUNED.get(preset, {}).get(encoder, {})
    config = make_config(preset, {**tuned, "encoder": encoder})
    if given.get("loss") == "full_softmax":
        config = config.with_full_softmax()
    return dataclasses.replace(config, **given)


def _measure(
    configs: dict[str, TrainConfig], workdir: pathlib.Path
) -> list[dict[str, Any]]:
    """Trains all, then reads the test queries with each."""
    import recsys
    from recsys.training import train

    data = build_data(next(iter(configs.values())))
    runs = {
        name: train(config, workdir / name, data=data, evaluate=False)
        for name, config in configs.items()
    }
    queries, _ = data.split.reported
    rows = []
    for name, run in runs.items():
        recommender = recsys.load(run.workdir)
        evaluation = evaluate(
            recommender,
            queries,
            protocol=data.split.protocol,
            ks=(10,),
            lists=False,
            exclude_history=configs[name].excludes_history,
        )
        histories = queries.histories(np.arange(len(queries)))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            recommender.user_vectors(*histories)
            seconds.append(time.perf_counter() - began)
        rows.append(
            {
                "encoder": name,
                "parameters": recommender.model.count_params(),
                "epochs": len(run.history),
                "best epoch": run.best_epoch + 1,
                "seconds per epoch": float(
                    np.median([epoch["seconds"] for epoch in run.history])
                ),
                "encode ms per query": 1e3
                * float(np.median(seconds))
                / len(queries),
                **evaluation.metrics([parse_metric(m) for m in _METRICS]),
                "config": configs[name].to_dict(),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Lays out what was measured of each encoder."""
    header = [
        "encoder",
        "parameters",
        "best epoch",
        "s/epoch",
        "encode, ms/query",
        *_METRICS,
    ]
    return aligned(
        header,
        [
            [
                row["encoder"],
                f"{row['parameters']:,}",
                f"{row['best epoch']} of {row['epochs']}",
                f"{row['seconds per epoch']:.1f}",
                f"{row['encode ms per query']:.3f}",
                *(f"{row[name]:.4f}" for name in _METRICS),
            ]
            for row in rows
        ],
    )


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
