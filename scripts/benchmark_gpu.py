"""Trains a preset on a GPU with each precision, in one command.

Run it from the checkout, on a machine with a GPU, with the extra [gpu]:

    python scripts/benchmark_gpu.py --data=ml-1m
    python scripts/benchmark_gpu.py --data=ml-1m --limit=4m --json=gpu.json

Each variant is trained by `recsys.training.train` in a process of its own, with
the preset `movielens-1m` unless --preset names another. All together take no
longer than --limit (8 minutes): the one that is running then is ended, and
shown with the epochs that it has. The test queries are not read.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, seconds_per_epoch

from recsys.command_line import (
    Command,
    add_config_flags,
    add_preset_flag,
    given_fields,
    load_tensorflow,
    seconds_of,
)
from recsys.config import TrainConfig, make_config
from recsys.errors import InputError, missing_extra
from recsys.evaluation.results import aligned
from recsys.workdir import Workdir

COMMAND = Command(
    "benchmark_gpu",
    "Times whole trainings on a GPU, with and without XLA and bfloat16.",
    ["scripts/benchmark_gpu.py --data=ml-1m"],
)
add_preset_flag(COMMAND)
COMMAND.add_flag(
    str,
    "limit",
    "Most time for all trainings together, with s or m.",
    group="Run",
    default="8m",
)
COMMAND.add_flag(
    bool, "allow_cpu", "Run without a GPU, too.", group="Run", default=False
)
add_json_flag(COMMAND)
add_config_flags(COMMAND)

# What should be fastest comes first, since the limit may end the rest.
VARIANTS = {
    "bfloat16, XLA": {"precision": "bfloat16", "jit_compile": True},
    "float32, XLA": {"precision": "float32", "jit_compile": True},
    "bfloat16": {"precision": "bfloat16", "jit_compile": False},
    "float32": {"precision": "float32", "jit_compile": False},
}
_RUN = """
import json, sys
from recsys.command_line import load_tensorflow
from recsys.config import TrainConfig
load_tensorflow()
from recsys.training import train
config = TrainConfig(**json.loads(sys.argv[1]))
train(config, sys.argv[2], evaluate=False)
"""
_HEADER = [
    "variant",
    "epochs",
    "training, s",
    "s/epoch",
    "interactions/s",
    "best epoch",
    "validation recall@10",
    "ndcg@10",
    "end",
]


def main(values: dict[str, Any]) -> int:
    """Trains, measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    check_output_file(values)
    seconds = parse_seconds(values["limit"])
    given = given_fields(values)
    for name in ("precision", "jit_compile", "strategy"):
        if name in given:
            raise InputError(
                f"--{name} must be left out: one GPU is measured, with and "
                f"without XLA and bfloat16. Received: {given[name]}"
            )
    preset = values["preset"] or "movielens-1m"
    # A mistake in the flags is told before any training.
    configs = {
        name: make_config(preset, {**given, **fields})
        for name, fields in VARIANTS.items()
    }
    device = _device(values["allow_cpu"])
    ends = time.monotonic() + seconds
    rows = []
    for name, config in configs.items():
        left = ends - time.monotonic()
        if left <= 0:
            print(f"{name}: no time left")
            continue
        rows.append({"variant": name, **_train(config, left)})
        # What is there already should not go with a machine that is lost.
        print(f"{name}: {rows[-1]['end']}", flush=True)
        write_if_asked(values, {"device": device, "variants": rows})
    print(f"{device}; {machine()}\n\n{aligned(_HEADER, [*map(_cells, rows)])}")
    return 0


def parse_seconds(text: str) -> float:
    """Returns the seconds of such as "90s" or "8m".

    Raises:
        InputError: It is no positive time.
    """
    seconds = seconds_of(text, "sm")
    if seconds is None:
        raise InputError(
            "--limit must be a time with s or m, such as 90s or 8m. "
            f"Received: {text!r}"
        )
    return seconds


def _device(allow_cpu: bool) -> str:
    """Names the GPU that trainings will use."""
    load_tensorflow()
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return str(details.get("device_name", gpus[0].name))
    if not allow_cpu:
        raise missing_extra(
            "benchmark_gpu without --allow_cpu",
            "gpu",
            "no GPU that TensorFlow can use",
        )
    return "no GPU"


def _train(config: TrainConfig, limit: float) -> dict[str, Any]:
    """Trains in a process of its own; returns what its epochs measured."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        text = json.dumps(config.to_dict())
        process = subprocess.Popen(
            [sys.executable, "-c", _RUN, text, str(workdir)]
        )
        try:
            code = process.wait(limit)
            end = f"failed with exit code {code}" if code else "finished"
        except subprocess.TimeoutExpired:
            end = "ended by the limit"
        finally:
            process.terminate()
            process.wait()
        history, best = Workdir(workdir).read_history(config)
    seconds = [epoch["seconds"] for epoch in history]
    return {
        "end": end,
        "training seconds": sum(seconds),
        "seconds per epoch": seconds_per_epoch(seconds) if seconds else None,
        "best epoch": best,
        "epochs": history,
    }


def _cells(row: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    history, best = row["epochs"], row["best epoch"]
    if best is None:
        return [row["variant"], "0", *["-"] * 6, row["end"]]
    rates = [epoch["interactions_per_second"] for epoch in history]
    return [
        row["variant"],
        str(len(history)),
        f"{row['training seconds']:.1f}",
        f"{row['seconds per epoch']:.2f}",
        f"{max(rates):,.0f}",
        str(best + 1),
        f"{history[best]['validation_recall@10']:.4f}",
        f"{history[best]['validation_ndcg@10']:.4f}",
        row["end"],
    ]


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
