"""Measures training: interactions per second, share of the machine, memory.

Run it from the checkout, on an otherwise idle machine:

    python scripts/benchmark_training.py
    python scripts/benchmark_training.py --preset=movielens-1m --data=ml-1m

After some steps to warm up, the steps of one epoch are timed. "Useful
arithmetic" counts the multiplications and additions of the matrix products
for real positions (not padding) of the self-attention encoder and of the
softmax, forward and backward; its rate is compared with that of a square
float32 matrix product by TensorFlow in the same process.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import resource
import sys
import tempfile
import time
from typing import Any

import numpy as np

from recsys.command_line import Command, load_tensorflow
from recsys.config_flags import (
    add_config_flags,
    add_preset_flag,
    given_fields,
)
from recsys.training.config import TrainConfig, make_config

COMMAND = Command(
    "benchmark_training",
    "Times the training step, as a table and as JSON.",
    ["scripts/benchmark_training.py --preset=movielens-small"],
)
add_preset_flag(COMMAND)
COMMAND.add_flag(int, "steps", "Steps to time.", group="Run", default=60)
COMMAND.add_flag(str, "json", "Also write JSON to this file.", group="Run")
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
    load_tensorflow()
    measured = _measure(config, values["steps"])
    for name, value in measured.items():
        text = f"{value:,.3g}" if isinstance(value, float) else str(value)
        print(f"{name:40} {text}")
    if values["json"]:
        pathlib.Path(values["json"]).write_text(
            json.dumps(measured, indent=2) + "\n", "utf-8"
        )
    return 0


def _measure(config: TrainConfig, num_steps: int) -> dict[str, Any]:
    from recsys.training.inputs import build_data
    from recsys.training.trainer import Trainer
    from recsys.training.workdir import Workdir

    data = build_data(config)
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
        targets = positions = useful = 0.0
        timed = batches[:num_steps]
        began = time.perf_counter()
        for batch in timed:
            trainer.train_step(batch)
        seconds = time.perf_counter() - began
    for batch in timed:
        targets += float(np.count_nonzero(batch["target_ids"] > 0))
        lengths = np.count_nonzero(batch["history_ids"] > 0, axis=1)
        positions += float(lengths.sum())
        useful += _useful_operations(config, lengths, batch, data)
    rate = (before + _matrix_product_rate()) / 2
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "data": data.name,
        "items": data.vocabulary.num_items,
        "steps": len(timed),
        "seconds per step": seconds / len(timed),
        "interactions per second": targets / seconds,
        "positions per second": positions / seconds,
        "useful GFLOP/s": useful / seconds / 1e9,
        "matrix product GFLOP/s": rate / 1e9,
        "share of the matrix-product rate": useful / seconds / rate,
        "resident memory, GB": resource.getrusage(
            resource.RUSAGE_SELF
        ).ru_maxrss
        / 2**20,
    }


def _useful_operations(
    config: TrainConfig, lengths: np.ndarray, batch: Any, data: Any
) -> float:
    """Operations of the matrix products for real positions, both ways."""
    dim = config.embedding_dim
    softmax = np.count_nonzero(batch["target_ids"] > 0) * (
        data.vocabulary.num_items * dim
    )
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
