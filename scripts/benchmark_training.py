"""Measures training: speed, share of the machine, memory, time to quality.

Run it from the checkout, on an otherwise idle machine:

    python scripts/benchmark_training.py
    python scripts/benchmark_training.py --preset=movielens-1m --data=ml-1m
    python scripts/benchmark_training.py --preset=movielens-1m --data=ml-1m \
        --until_ndcg=0.1857 --peers=.venv-peers/bin/python

After some steps to warm up, the steps of one epoch are timed. "Useful
arithmetic" counts the multiplications and additions of the matrix products
for real positions (not padding) of the self-attention encoder and of the
softmax (of the sampled one, its target and negatives), forward and backward;
its rate is compared with that of a square float32 matrix product by TensorFlow
in the same process.

With `--until_ndcg` the configuration is trained until the test queries have
that NDCG@10 (see quality_curve.py), with `--peers` other libraries train on
the same split (see docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, peak_memory, seconds_per_epoch
from peer_runs import (
    PEERS,
    check_peers,
    draw_curves,
    peers_table,
    run_peers,
)

from recsys.command_line import (
    Command,
    add_config_flags,
    add_preset_flag,
    given_fields,
    load_tensorflow,
)
from recsys.config import TrainConfig, make_config
from recsys.data.prepare import PreparedData, build_data, choose
from recsys.data.sequences import Sequences
from recsys.errors import InputError, need_packages
from recsys.evaluation.results import aligned

if TYPE_CHECKING:
    from quality_curve import QualityCurve

COMMAND = Command(
    "benchmark_training",
    "Times the training step, as a table and as JSON.",
    ["scripts/benchmark_training.py --preset=movielens-small"],
)
add_preset_flag(COMMAND)
COMMAND.add_flag(int, "steps", "Steps to time.", group="Run", default=60)
COMMAND.add_flag(
    float,
    "until_ndcg",
    "Train until the test queries have this NDCG@10, and time it.",
    group="Run",
)
COMMAND.add_flag(
    str,
    "peers",
    "Python of an environment with other libraries, which then train on the "
    "same split.",
    group="Run",
)
COMMAND.add_flag(
    int,
    "peer_epochs",
    "Epochs of the other libraries' models, and without --until_ndcg of ours.",
    group="Run",
    default=1,
)
COMMAND.add_flag(
    str,
    "peer_models",
    f"Some of the other libraries' models: {', '.join(PEERS)}. Default: all.",
    group="Run",
)
COMMAND.add_flag(
    str,
    "peer_folder",
    "Folder for the other libraries' results, so that a rerun skips models "
    "that are already trained.",
    group="Run",
)
COMMAND.add_flag(
    str,
    "curves",
    "Draw test NDCG@10 by minutes of training, with --peers, to this PNG or "
    "SVG file; needs matplotlib.",
    group="Run",
)
add_json_flag(COMMAND)
add_config_flags(COMMAND)
_MATRIX_SIZE = 2048


def main(values: dict[str, Any]) -> int:
    """Measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    config = make_config(values["preset"], given_fields(values))
    data = _checked_data(values, config)
    config, _ = choose(config, data)
    load_tensorflow()
    measured = _measure_steps(config, data, values["steps"])
    for name, value in measured.items():
        text = f"{value:,.3g}" if isinstance(value, float) else str(value)
        print(f"{name:40} {text}")
    if values["until_ndcg"] is not None or values["peers"] is not None:
        curve = _train(config, data, values)
        measured["quality"] = dataclasses.asdict(curve)
    if values["peers"] is not None:
        ours = _our_row(config, curve)
        folder = values["peer_folder"]
        peers = run_peers(
            values["peers"],
            data,
            config,
            epochs=values["peer_epochs"],
            models=_peer_models(values),
            folder=pathlib.Path(folder) if folder else None,
        )
        measured["peers"] = [ours, *peers]
        print(f"\n{aligned(*peers_table(ours, peers))}")
    write_if_asked(values, measured)
    if values["curves"]:
        draw_curves(measured["peers"], pathlib.Path(values["curves"]))
    return 0


def _peer_models(values: dict[str, Any]) -> list[str]:
    """Returns the other libraries' models that were asked for."""
    names = values["peer_models"]
    return list(PEERS) if names is None else names.split(",")


def _checked_data(values: dict[str, Any], config: TrainConfig) -> PreparedData:
    """Reads the data once it is clear that everything can be measured."""
    check_output_file(values)
    check_output_file(values, "curves")
    for name in ("peer_models", "peer_folder", "curves"):
        if values["peers"] is None and values[name] is not None:
            raise InputError(
                f"--{name} must go with --peers. Received: {values[name]!r}"
            )
    if values["curves"] is not None:
        if pathlib.Path(values["curves"]).suffix not in (".png", ".svg"):
            raise InputError(
                "--curves must name a file that ends in .png or .svg. "
                f"Received: {values['curves']!r}"
            )
        need_packages("--curves", "report", "matplotlib")
    for name in ("steps", "peer_epochs"):
        if values[name] < 1:
            raise InputError(
                f"--{name} must be at least 1. Received: {values[name]}"
            )
    if values["peers"] is not None:
        if config.split != "leave_last_out" or not config.excludes_history:
            raise InputError(
                "--peers must go with --split=leave_last_out and without "
                "--repeats=all. Received: "
                f"--split={config.split} --repeats={config.repeats}"
            )
        check_peers(values["peers"], _peer_models(values))
    data = build_data(config)
    if values["peers"] is not None and not isinstance(
        data.split.train, Sequences
    ):
        raise InputError(
            "--peers must go with a log that is read into memory. Received: "
            f"--data={config.data}"
        )
    if values["until_ndcg"] is not None and data.split.test is None:
        raise InputError(
            "--until_ndcg must go with a split that has test queries. "
            f"Received: --split={config.split}"
        )
    return data


def _train(
    config: TrainConfig, data: PreparedData, values: dict[str, Any]
) -> QualityCurve:
    """Trains as far as the flags say, and prints what was reached."""
    from quality_curve import train_until

    goal = values["until_ndcg"]
    curve = train_until(
        config,
        data,
        until_ndcg=goal,
        max_epochs=values["peer_epochs"] if goal is None else None,
    )
    columns = ("training_seconds", "test_recall@10", "test_ndcg@10")
    rows = [
        [str(number), f"{epoch[columns[0]]:.1f}"]
        + [f"{epoch[name]:.4f}" for name in columns[1:]]
        for number, epoch in enumerate(curve.epochs, start=1)
    ]
    header = ["epoch", "seconds", "test recall@10", "ndcg@10"]
    print(f"\n{aligned(header, rows)}\n")
    if goal is not None:
        print(
            f"test NDCG@10 of {goal:g}: "
            f"{'reached' if curve.reached else 'not reached'} after "
            f"{curve.training_seconds:.1f} seconds of training, "
            f"{curve.wall_clock_seconds:.1f} with evaluations"
        )
    return curve


def _our_row(config: TrainConfig, curve: QualityCurve) -> dict[str, Any]:
    """Returns what `peers_table` shows of ours."""
    epochs = curve.epochs
    seconds = [epoch["seconds"] for epoch in epochs]
    interactions = [e["interactions_per_second"] * e["seconds"] for e in epochs]
    return {
        "name": f"recsys {config.encoder}",
        "epochs": len(epochs),
        "training seconds": curve.training_seconds,
        "seconds per epoch": seconds_per_epoch(seconds),
        "interactions per epoch": float(np.mean(interactions)),
        "recommend seconds": curve.recommend_seconds,
        "resident memory, GB": peak_memory(),
        "curve": epochs,
    }


def _measure_steps(
    config: TrainConfig, data: PreparedData, num_steps: int
) -> dict[str, Any]:
    """Times steps of the first epoch after one of each shape."""
    from recsys.training.trainer import Trainer
    from recsys.workdir import Workdir

    before = _matrix_product_rate()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            config, Workdir(pathlib.Path(folder)), data, verbose=False
        )
        batches = list(trainer.batches(epoch=0))
        seen = set()
        for batch in batches:
            shape = tuple(batch["history_ids"].shape)
            if shape not in seen:
                trainer.train_step(batch)
                seen.add(shape)
        timed = batches[:num_steps]
        began = time.perf_counter()
        for batch in timed:
            trainer.train_step(batch)
        seconds = time.perf_counter() - began
    counted = [position_counts(batch) for batch in timed]
    targets = sum(count["target"] for count in counted)
    num_logits = logits_per_target(config, data)
    useful = sum(
        useful_operations(config, batch, num_logits) for batch in timed
    )
    rate = (before + _matrix_product_rate()) / 2
    return {
        "machine": machine(),
        "data": data.name,
        "items": data.vocabulary.num_items,
        **_describe(config),
        "steps": len(timed),
        "seconds per step": seconds / len(timed),
        "interactions per second": targets / seconds,
        **_shares(batches),
        "useful GFLOP/s": useful / seconds / 1e9,
        "matrix product GFLOP/s": rate / 1e9,
        "share of the matrix-product rate": useful / seconds / rate,
        "resident memory, GB": peak_memory(),
    }


def _describe(config: TrainConfig) -> dict[str, Any]:
    """Names the fields that decide what a step costs."""
    names = ["encoder", "embedding_dim", "max_history_length"]
    if config.encoder == "self_attention":
        names += ["num_blocks", "num_heads"]
    return {name: getattr(config, name) for name in names} | {
        "positions_per_batch": config.positions_per_batch
    }


def position_counts(batch: Any) -> dict[str, int]:
    """Counts the positions of a batch by their use.

    Args:
        batch: `history_ids` and `target_ids`, `[rows, length]`.

    Returns:
        How many learn a target, how many are only read, how many are padding.
    """
    ids = np.asarray(batch["history_ids"])
    targets = int(np.count_nonzero(np.asarray(batch["target_ids"])))
    real = int(np.count_nonzero(ids))
    return {
        "target": targets,
        "context": real - targets,
        "padding": ids.size - real,
    }


def _shares(batches: list[Any]) -> dict[str, float]:
    """Returns the share of each use in the positions of an epoch."""
    counted = [position_counts(batch) for batch in batches]
    total = sum(sum(count.values()) for count in counted)
    return {
        f"share of positions: {use}": sum(c[use] for c in counted) / total
        for use in ("target", "context", "padding")
    }


def logits_per_target(config: TrainConfig, data: PreparedData) -> int:
    """Returns how many logits the loss makes for each target."""
    from recsys.training.build import trained_items, uses_sampled_softmax

    if uses_sampled_softmax(config, data.vocabulary.num_items):
        return 1 + config.num_negatives
    if config.item_features:
        return len(trained_items(data.vocabulary))
    return data.vocabulary.num_items


def useful_operations(
    config: TrainConfig, batch: Any, num_logits: int
) -> float:
    """Counts operations of the matrix products for real positions.

    Args:
        config: The configuration.
        batch: `history_ids` and `target_ids`, `[rows, length]`.
        num_logits: How many logits each target has.

    Returns:
        The number, forward and backward; without the encoder's where it is
        no self-attention.
    """
    lengths = np.count_nonzero(np.asarray(batch["history_ids"]), axis=1)
    dim = config.embedding_dim
    targets = np.count_nonzero(np.asarray(batch["target_ids"]))
    softmax = targets * num_logits * dim
    if config.encoder != "self_attention":
        return 6.0 * softmax
    # Query, key, value, gate and output; then three times 2 dim, and a gate.
    linear = lengths.sum() * (5 + 7) * dim * dim
    # A position reads those up to itself, once for logits, once for values.
    attention = (lengths * (lengths + 1) / 2).sum() * 2 * dim
    return 6.0 * (softmax + config.num_blocks * (linear + attention))


def _matrix_product_rate() -> float:
    """Operations per second of a square product; the median of ten."""
    import tensorflow as tf

    left = tf.random.normal([_MATRIX_SIZE, _MATRIX_SIZE])
    right = tf.random.normal([_MATRIX_SIZE, _MATRIX_SIZE])
    seconds = []
    for _ in range(12):
        began = time.perf_counter()
        tf.matmul(left, right).numpy()
        seconds.append(time.perf_counter() - began)
    return 2.0 * _MATRIX_SIZE**3 / float(np.median(seconds[2:]))


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
