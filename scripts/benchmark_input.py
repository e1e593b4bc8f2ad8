"""Measures input: CSV to sequences, TFDS, shards, a large vocabulary.

Run it from the checkout, on an otherwise idle machine:

    python scripts/benchmark_input.py
    python scripts/benchmark_input.py --parts=csv --interactions=1000000
    python scripts/benchmark_input.py --parts=tfds \
        --tfds=movielens/1m-ratings --tfds_manual_dir=DIR

Every measurement has a process of its own, so that its peak of memory is its
own. `csv` writes a log of ratings like MovieLens-20M's (138,493 users, 26,744
items; always the same) and reads it with recsys and with pandas (extra
[benchmarks]), to the same sequences. `events` adds kinds of events and two more
columns, and reads it with kinds that count alike and with weights and dislikes.
CPU seconds beside seconds tell what a busy machine does not change much. `tfds`
reads a configuration by `as_numpy`, by column, and from the cached columns.
`shards` prepares a synthetic log and reads an epoch of batches. `vocabulary`
has ten million ids.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, peak_memory

from recsys.command_line import Command
from recsys.data.synthetic import SyntheticLog
from recsys.errors import InputError

_PARTS = ("csv", "events", "tfds", "shards", "vocabulary")
# Of MovieLens-20M.
_USERS, _ITEMS = 138_493, 26_744
# Rows read by `as_numpy`, which is slow.
_NUM_SLOW_ROWS = 20_000
_KINDS = ["view", "cart", "purchase", "hide"]
_RULES = {"events": "view:1,cart:3,purchase:5", "dislikes": "hide"}
_MAX_LENGTH, _POSITIONS = 200, 12_800

COMMAND = Command(
    "benchmark_input",
    "Times input, as a table and as JSON.",
    [
        "scripts/benchmark_input.py",
        "scripts/benchmark_input.py --parts=csv --interactions=1000000",
    ],
)
COMMAND.add_flag(
    str,
    "parts",
    f"With commas between: {', '.join(_PARTS)}.",
    group="Run",
    default="csv,events,shards,vocabulary",
)
COMMAND.add_flag(
    int,
    "interactions",
    "Of the CSV file and of the synthetic log.",
    group="Run",
    default=20_000_000,
)
COMMAND.add_flag(
    int, "items", "Of the synthetic log.", group="Run", default=1_000_000
)
COMMAND.add_flag(
    int, "ids", "Of the vocabulary.", group="Run", default=10_000_000
)
COMMAND.add_flag(
    str,
    "tfds",
    "The configuration that `tfds` reads.",
    group="TFDS",
    default="movielens/1m-ratings",
)
COMMAND.add_flag(
    str, "tfds_manual_dir", "Folder with its archive.", group="TFDS"
)
COMMAND.add_flag(
    str, "folder", "Where files go. Default: a temporary one.", group="Run"
)
add_json_flag(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    parts = values["parts"].split(",")
    if not set(parts) <= set(_PARTS):
        raise InputError(
            f"--parts must be some of {', '.join(_PARTS)}. "
            f"Received: {values['parts']!r}"
        )
    check_output_file(values)
    measured: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=values["folder"]) as folder:
        for part in parts:
            measure = globals()[f"_measure_{part}"]
            for name, value in measure(pathlib.Path(folder), values).items():
                measured[f"{part}: {name}"] = value
    for name, value in measured.items():
        text = f"{value:,.4g}" if isinstance(value, float) else str(value)
        print(f"{name:50} {text}")
    write_if_asked(values, measured)
    return 0


def _alone(work: Callable[..., dict[str, Any]], *arguments: Any) -> Any:
    """Runs a function in a new process; returns its peak of memory too."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_with_memory, work, arguments).result()


def _with_memory(
    work: Callable[..., dict[str, Any]], arguments: Any
) -> dict[str, Any]:
    found = work(*arguments)
    return {**found, "peak memory, GB": peak_memory()}


def _named(prefix: str, found: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}, {name}": value for name, value in found.items()}


def _measure_csv(folder: pathlib.Path, values: dict[str, Any]) -> Any:
    with _csv_file(folder, values) as (path, about):
        ours = _alone(_read_with_recsys, path)
        theirs = _alone(_read_with_pandas, path)
    if ours["interactions"] != theirs["interactions"]:
        raise RuntimeError(
            "recsys and pandas must find the same interactions. Received: "
            f"{ours['interactions']} and {theirs['interactions']}"
        )
    return {**about, **_named("recsys", ours), **_named("pandas", theirs)}


def _measure_events(folder: pathlib.Path, values: dict[str, Any]) -> Any:
    with _csv_file(folder, values, has_events=True) as (path, about):
        alike = _alone(_read_with_recsys, path)
        weighted = _alone(_read_with_recsys, path, _RULES)
    return {
        **about,
        **_named("alike", alike),
        **_named("weights and dislikes", weighted),
    }


@contextlib.contextmanager
def _csv_file(
    folder: pathlib.Path, values: dict[str, Any], has_events: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Provides the path of a log like MovieLens-20M, and its size."""
    path = folder / "log.csv"
    log = SyntheticLog(_USERS, _ITEMS, values["interactions"], seed=20)
    _write_csv(log, path, has_events)
    # Once, so that all readers find the file in the page cache.
    size = len(path.read_bytes()) / 2**20
    yield str(path), {"rows": values["interactions"], "size, MB": size}
    path.unlink()


def _write_csv(log: SyntheticLog, path: pathlib.Path, has_events: bool) -> None:
    """Writes a log with ratings, whose rows are in order of users."""
    writer = None
    for number, chunk in enumerate(log.chunks()):
        rng, size = np.random.default_rng(number), len(chunk)
        columns = {
            "userId": pa.array(chunk.user_ids).take(pa.array(chunk.users)),
            "movieId": pa.array(chunk.item_ids).take(pa.array(chunk.items)),
            "rating": rng.integers(1, 11, size) / 2,
            "timestamp": chunk.timestamps,
        }
        if has_events:
            kinds = rng.choice(4, size, p=[0.8, 0.1, 0.07, 0.03])
            devices = pa.array(["phone", "tablet", "desktop"])
            columns["event"] = pa.array(_KINDS).take(pa.array(kinds))
            columns["device"] = devices.take(
                pa.array(rng.integers(3, size=size))
            )
            columns["price"] = rng.integers(1, 10_000, size) / 100
        table = pa.table(columns)
        if writer is None:
            writer = pa_csv.CSVWriter(
                path,
                table.schema,
                write_options=pa_csv.WriteOptions(quoting_style="none"),
            )
        writer.write(table)
    if writer is not None:
        writer.close()


def _read_with_recsys(
    path: str, fields: dict[str, str] | None = None
) -> dict[str, Any]:
    from recsys.config import TrainConfig
    from recsys.data.prepare import build_data

    began, of_cpu = time.perf_counter(), time.process_time()
    data = build_data(TrainConfig(data=path, **(fields or {})))
    return {
        "seconds": time.perf_counter() - began,
        "CPU seconds": time.process_time() - of_cpu,
        "interactions": data.num_interactions,
    }


def _read_with_pandas(path: str) -> dict[str, Any]:
    """Does in pandas what `build_data` does, as one would write it."""
    import pandas as pd

    began, of_cpu = time.perf_counter(), time.process_time()
    frame = pd.read_csv(
        path, dtype={"userId": str, "movieId": str, "rating": np.float32}
    )
    frame = frame.sort_values(["userId", "timestamp"], kind="stable")
    frame = frame.drop_duplicates(["userId", "movieId"])
    items, _ = pd.factorize(frame["movieId"])
    lengths = frame.groupby("userId", sort=True).size().to_numpy()
    offsets = np.append(0, np.cumsum(lengths))
    train_ends = offsets[1:] - np.clip(lengths - 1, 0, 2)
    is_train = np.arange(len(items)) < np.repeat(train_ends, lengths)
    train = items[is_train]
    assert len(train) == train_ends.sum() - offsets[:-1].sum()
    return {
        "seconds": time.perf_counter() - began,
        "CPU seconds": time.process_time() - of_cpu,
        "interactions": len(items),
    }


def _measure_tfds(folder: pathlib.Path, values: dict[str, Any]) -> Any:
    name, manual_dir = values["tfds"], values["tfds_manual_dir"]
    arguments = (name, str(folder / "tfds"), manual_dir)
    # Prepares, and keeps columns that are then put away.
    _alone(_read_tfds, *arguments)
    found = {}
    for title, is_first in (("by column", True), ("cached", False)):
        if is_first:
            for path in (folder / "tfds").rglob("recsys-*.parquet"):
                path.unlink()
        found.update(_named(title, _alone(_read_tfds, *arguments)))
    return {
        "configuration": name,
        **_named("as_numpy", _alone(_read_as_numpy, *arguments[:2])),
        **found,
    }


def _read_tfds(
    name: str, data_dir: str, manual_dir: str | None
) -> dict[str, Any]:
    import tensorflow_datasets  # noqa: F401

    from recsys.data import movielens

    began = time.perf_counter()
    interactions, *_ = movielens.read_tfds(name, data_dir, manual_dir)
    return {
        "rows per second": len(interactions) / (time.perf_counter() - began)
    }


def _read_as_numpy(name: str, data_dir: str) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    rows = tfds.as_numpy(tfds.load(name, split="train", data_dir=data_dir))
    began = None
    for number, _ in enumerate(rows):
        # Not the start of the pipeline.
        if number == 1_000:
            began = time.perf_counter()
        if number == 1_000 + _NUM_SLOW_ROWS:
            break
    assert began is not None
    return {"rows per second": (number - 1_000) / (time.perf_counter() - began)}


def _measure_shards(folder: pathlib.Path, values: dict[str, Any]) -> Any:
    output = str(folder / "shards")
    interactions = values["interactions"]
    data = (
        f"synthetic:users={max(1, interactions // 50)},"
        f"items={values['items']},interactions={interactions}"
    )
    prepared = _alone(_prepare_shards, data, output)
    size = sum(
        p.stat().st_size for p in pathlib.Path(output).rglob("*.parquet")
    )
    return {
        "interactions": interactions,
        "items": values["items"],
        **_named("preparing", prepared),
        "size, MB": size / 2**20,
        **_named("an epoch", _alone(_read_epoch, output)),
    }


def _prepare_shards(data: str, output: str) -> dict[str, Any]:
    from recsys.data import shard_preparation, sources
    from recsys.data.shard_preparation import Options

    began = time.perf_counter()
    shard_preparation.prepare_shards(
        sources.Source(data), pathlib.Path(output), Options()
    )
    # At least what this process held when it started them, which is little.
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {
        "seconds": time.perf_counter() - began,
        "workers' peak memory, GB": workers * 1024 / 1e9,
    }


def _read_epoch(folder: str) -> dict[str, Any]:
    from recsys.data import pipeline
    from recsys.data.prepare import open_shards

    train = open_shards(pathlib.Path(folder)).split.train
    began = time.perf_counter()
    plan = pipeline.plan_epoch(
        train,
        max_length=_MAX_LENGTH,
        positions_per_batch=_POSITIONS,
        seed=0,
        epoch=0,
    )
    planned = time.perf_counter()
    num_batches = sum(1 for _ in pipeline.train_dataset(train, plan))
    seconds = time.perf_counter() - planned
    return {
        "groups": len(plan.num_batches),
        "seconds of planning": planned - began,
        "seconds": seconds,
        f"batches of {_POSITIONS} positions per second": num_batches / seconds,
        "interactions per second": train.num_interactions / seconds,
    }


def _measure_vocabulary(folder: pathlib.Path, values: dict[str, Any]) -> Any:
    path = folder / "vocabulary.parquet"
    _alone(_save_vocabulary, str(path), values["ids"])
    return {"ids": values["ids"], **_alone(_use_vocabulary, str(path))}


def _save_vocabulary(path: str, num_ids: int) -> dict[str, Any]:
    from recsys.data.vocabulary import Vocabulary

    ids = np.random.default_rng(0).permutation(num_ids) + 10**9
    Vocabulary(pa.array(ids)).save(path)
    return {}


def _use_vocabulary(path: str) -> dict[str, Any]:
    from recsys.data.vocabulary import Vocabulary

    began = time.perf_counter()
    vocabulary = Vocabulary.load(path)
    loaded = time.perf_counter()
    ids = vocabulary.decode([5, 50, 500]).tolist()
    decoded = time.perf_counter()
    assert vocabulary.encode([*ids, "none"]).tolist() == [5, 50, 500, 1]
    encoded = time.perf_counter()
    return {
        "seconds to load": loaded - began,
        "seconds of the first encode": encoded - decoded,
    }


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
