"""Measures full ranking: time, and memory with a large catalog.

Run it from the checkout, on an otherwise idle machine:

    python scripts/benchmark_evaluation.py --workdir=runs/movielens-small
    python scripts/benchmark_evaluation.py --queries=1000000

With `--workdir`, the trained model's own test queries are ranked, encoding of
their histories included: every metric at all cuts and lists of 100. Otherwise
queries are ranked over synthetic item vectors: what a catalog of that size
costs beside the encoding. There the vectors are whole numbers, so that
products are exact and no result may depend on the batch size; that is
checked.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, peak_memory

from recsys.command_line import Command, load_tensorflow
from recsys.data.sequences import Sequences
from recsys.data.splits import Queries, leave_last_out
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.evaluation import Evaluation, evaluate
from recsys.ids import FIRST_ITEM_INDEX

_HISTORY_LENGTH = 20
# Queries that are ranked once more, in batches of other sizes.
_NUM_COMPARED = 500

COMMAND = Command(
    "benchmark_evaluation",
    "Times full ranking, as a table and as JSON.",
    [
        "scripts/benchmark_evaluation.py --workdir=runs/movielens-small",
        "scripts/benchmark_evaluation.py --queries=1000000",
    ],
)
COMMAND.add_flag(
    str,
    "workdir",
    "Rank the queries of this trained model, instead of synthetic ones.",
    group="Run",
)
COMMAND.add_flag(
    int, "queries", "Synthetic queries.", group="Run", default=100_000
)
COMMAND.add_flag(int, "items", "Items.", group="Run", default=100_000)
COMMAND.add_flag(int, "dim", "Length of the vectors.", group="Run", default=64)
COMMAND.add_flag(
    int, "repeats", "Runs after the first.", group="Run", default=3
)
add_json_flag(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    check_output_file(values)
    lowest = {"queries": 1, "items": 1000, "dim": 1, "repeats": 1}
    for name, least in lowest.items():
        if values[name] < least:
            raise InputError(
                f"--{name} must be at least {least}. Received: {values[name]}"
            )
    if values["workdir"]:
        measured = _measure_model(
            pathlib.Path(values["workdir"]), values["repeats"]
        )
    else:
        measured = _measure_streamed(
            values["queries"], values["items"], values["dim"]
        )
    measured = {
        "machine": machine(),
        **measured,
        "peak memory, GB": peak_memory(),
    }
    for name, value in measured.items():
        text = f"{value:,.3g}" if isinstance(value, float) else str(value)
        print(f"{name:45} {text}")
    write_if_asked(values, measured)
    return 0


def _measure_model(workdir: pathlib.Path, repeats: int) -> dict[str, Any]:
    """Ranks a stored model's own queries, several times."""
    from recsys.evaluation.run import evaluation_data
    from recsys.workdir import Workdir

    folder = Workdir(workdir)
    config = folder.read_config()
    asked = evaluation_data(
        config, Vocabulary.load(folder.vocabulary), {}, None
    )
    split = asked.data.split
    queries, _ = split.reported
    load_tensorflow()
    import recsys

    recommender = recsys.load(workdir)
    histories = queries.histories(np.arange(len(queries)))

    def rank(batch_size: int = 1024) -> Evaluation:
        return evaluate(
            recommender,
            queries,
            protocol=split.protocol,
            exclude_history=config.excludes_history,
            batch_size=batch_size,
        )

    first = _seconds(rank)
    ranking = [_seconds(rank) for _ in range(repeats)]
    encoding = [
        _seconds(lambda: recommender.user_vectors(*histories))
        for _ in range(repeats)
    ]
    one, other = rank().metrics(), rank(batch_size=300).metrics()
    return {
        "data": asked.data.name,
        "queries": len(queries),
        "items": asked.data.vocabulary.num_items,
        "seconds, first time": first,
        "seconds, warmed up (median)": float(np.median(ranking)),
        "seconds of which encoding (median)": float(np.median(encoding)),
        "largest difference between batch sizes": max(
            abs(one[name] - other[name]) for name in one
        ),
    }


def _measure_streamed(
    num_queries: int, num_items: int, dim: int
) -> dict[str, Any]:
    """Ranks synthetic queries over synthetic vectors."""
    rng = np.random.default_rng(0)
    queries = _synthetic_queries(rng, num_queries, num_items)
    recommender = _LastItem(
        rng.integers(
            -256, 256, (num_items + FIRST_ITEM_INDEX, dim), np.int32
        ).astype(np.float32)
    )
    few = queries.select(np.arange(min(_NUM_COMPARED, num_queries)))
    compared = [
        evaluate(recommender, few, protocol="synthetic", batch_size=size)
        for size in (1024, 64, 7)
    ]
    for other in compared[1:]:
        _check_same(compared[0], other)
    before = peak_memory()
    seconds = _seconds(
        lambda: evaluate(recommender, queries, protocol="synthetic")
    )
    return {
        "queries": num_queries,
        "items": num_items,
        "dim": dim,
        "seconds": seconds,
        "milliseconds per query": 1000 * seconds / num_queries,
        "results are the same for batch sizes": "1024, 64, 7",
        "peak memory before, GB": before,
    }


@dataclasses.dataclass
class _LastItem:
    """Scores items by their products with the history's last.

    Attributes:
        vectors: `[vocabulary_size, dim]` float32, small whole numbers.
        name: See `recsys.evaluation.Scorer`.
    """

    vectors: np.ndarray
    name: str = "last item"

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns `[num_queries, vocabulary_size]` float32."""
        return self.vectors[items[offsets[1:] - 1]] @ self.vectors.T


def _synthetic_queries(
    rng: np.random.Generator, num_queries: int, num_items: int
) -> Queries:
    """Draws users with different items each, the last one to be found."""
    length = _HISTORY_LENGTH + 1
    # Steps below a share of the catalog never come back to an item.
    steps = rng.integers(1, num_items // length, (num_queries, length))
    items = np.cumsum(steps, axis=1, dtype=np.int64)
    items += rng.integers(num_items, size=(num_queries, 1))
    items = items % num_items + FIRST_ITEM_INDEX
    sequences = Sequences(
        user_ids=np.arange(num_queries).astype(str).astype(object),
        offsets=length * np.arange(num_queries + 1),
        items=items.ravel().astype(np.int32),
        timestamps=np.tile(np.arange(length), num_queries),
    )
    test = leave_last_out(sequences).test
    assert test is not None  # Every user is long enough.
    return test


def _check_same(first: Evaluation, second: Evaluation) -> None:
    """Raises RuntimeError when two results differ in anything."""
    for field in dataclasses.fields(first):
        if not np.array_equal(
            *(getattr(each, field.name) for each in (first, second)),
            equal_nan=field.name == "ranks",
        ):
            raise RuntimeError(
                f"`{field.name}` must not depend on the batch size. Received: "
                "different values"
            )


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
