"""Measures retrieval: exact and approximate, beside faiss's flat index.

Run it from the checkout, on an otherwise idle machine, with the extra
`[benchmarks]`:

    python scripts/benchmark_retrieval.py
    python scripts/benchmark_retrieval.py --candidates=10000000

The candidates are synthetic: clusters of normal vectors, the same in every
run; queries are from the same clusters. Exact search and faiss run one after
the other, each in a process of its own, and their lists are compared; times are
medians.
The recall of the approximate index is relative to the exact lists, and its time
is that of one query in a batch of 1,000. OPENBLAS_CORETYPE, if it is set, may
slow NumPy down.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent import futures
from typing import Any

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, num_cores

from recsys.command_line import Command, load_tensorflow
from recsys.errors import InputError, missing_extra

_K = 100
_BATCH_SIZES = (1, 32, 1000)
_CANDIDATES_PER_CLUSTER = 200

COMMAND = Command(
    "benchmark_retrieval",
    "Times exact and approximate top-k beside faiss, as a table and as JSON.",
    [
        "scripts/benchmark_retrieval.py",
        "scripts/benchmark_retrieval.py --approximate=false",
    ],
)
COMMAND.add_flag(
    list,
    "candidates",
    "A number of candidates; repeated. Default: 10000 and 1000000.",
    group="Run",
)
COMMAND.add_flag(int, "dim", "Length of the vectors.", group="Run", default=64)
COMMAND.add_flag(
    bool,
    "approximate",
    "Whether to measure the approximate index too.",
    group="Run",
    default=True,
)
COMMAND.add_flag(
    int,
    "threads",
    "Threads, and cores, of all three. Default: all that the process has.",
    group="Run",
)
COMMAND.add_flag(
    int, "repeats", "Runs after the first.", group="Run", default=5
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
    for name in ("dim", "repeats"):
        if values[name] < 1:
            raise InputError(
                f"--{name} must be at least 1. Received: {values[name]}"
            )
    threads = num_cores() if values["threads"] is None else values["threads"]
    if not 1 <= threads <= num_cores():
        raise InputError(
            f"--threads must be from 1 to {num_cores()}, the cores that this "
            f"process has. Received: {threads}"
        )
    sizes = values["candidates"] or ["10000", "1000000"]
    for size in sizes:
        if not size.isdigit() or int(size) < 1000:
            raise InputError(
                f"--candidates must be at least 1000. Received: {size}"
            )
    # Before any of them starts its threads, one for every core.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise missing_extra("this benchmark", "benchmarks", error) from error
    load_tensorflow()
    measured = []
    for size in sizes:
        measured += _measure_exact(int(size), values["dim"], values["repeats"])
        if values["approximate"]:
            candidates, queries = _clusters(int(size), values["dim"])
            measured.append(
                _measure_approximate(candidates, queries, values["repeats"])
            )
    print(f"\n{machine()}; top {_K}, {values['dim']} dimensions")
    for entry in measured:
        print(
            f"{entry['candidates']:>11,} candidates  "
            + "  ".join(
                f"{name} {value:,.4g}"
                for name, value in entry.items()
                if name != "candidates"
            )
        )
    write_if_asked(values, {"machine": machine(), "measured": measured})
    return 0


def _clusters(num_candidates: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws `[num_candidates, dim]` candidates and `[1000, dim]` queries."""
    rng = np.random.default_rng(0)
    num_clusters = max(num_candidates // _CANDIDATES_PER_CLUSTER, 1)
    centers = rng.standard_normal((num_clusters, dim), np.float32)

    def draw(num: int) -> np.ndarray:
        vectors = rng.standard_normal((num, dim), np.float32)
        vectors *= 0.5
        vectors += centers[rng.integers(num_clusters, size=num)]
        return vectors

    return draw(num_candidates), draw(max(_BATCH_SIZES))


def _measure_exact(size: int, dim: int, repeats: int) -> list[dict[str, float]]:
    """Compares exact search with faiss, each in a process of its own.

    In one process the threads of each library would slow the other down.
    """
    times: dict[str, list[float]] = {}
    lists: dict[str, list[np.ndarray]] = {}
    for library in ("exact", "faiss"):
        with futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as pool:
            times[library], lists[library] = pool.submit(
                _time_library, library, size, dim, repeats
            ).result()
    entries = []
    for place, batch_size in enumerate(_BATCH_SIZES):
        exact, other = (times[name][place] for name in ("exact", "faiss"))
        entry = {
            "candidates": size,
            "queries": batch_size,
            "exact, ms": exact,
            "faiss, ms": other,
            "exact / faiss": exact / other,
            "in common": _recall(lists["exact"][place], lists["faiss"][place]),
        }
        print(entry, flush=True)
        entries.append(entry)
    return entries


def _time_library(
    library: str, size: int, dim: int, repeats: int
) -> tuple[list[float], list[np.ndarray]]:
    """Returns the median milliseconds and the lists of each batch size."""
    candidates, queries = _clusters(size, dim)
    search: Callable[[np.ndarray], np.ndarray]
    if library == "exact":
        from recsys.retrieval import ExactIndex

        index = ExactIndex(np.arange(size), candidates)

        def search(batch: np.ndarray) -> np.ndarray:
            return index.top_k(batch, _K).identifiers
    else:
        import faiss

        flat = faiss.IndexFlatIP(dim)
        flat.add(candidates)

        def search(batch: np.ndarray) -> np.ndarray:
            return flat.search(batch, _K)[1]

    times, lists = [], []
    for batch_size in _BATCH_SIZES:
        batch = queries[:batch_size]
        lists.append(search(batch))
        # Single queries are short, so that they are repeated more often.
        num_runs = repeats * max(1, 200 // batch_size)
        seconds = [
            _seconds(functools.partial(search, batch)) for _ in range(num_runs)
        ]
        times.append(1000 * float(np.median(seconds)))
    return times, lists


def _measure_approximate(
    candidates: np.ndarray, queries: np.ndarray, repeats: int
) -> dict[str, float]:
    """Measures the recall relative to the exact lists, and the time."""
    from recsys.retrieval import ApproximateIndex, ExactIndex

    identifiers = np.arange(len(candidates))
    expected = ExactIndex(identifiers, candidates).top_k(queries, _K)
    began = time.perf_counter()
    index = ApproximateIndex(identifiers, candidates)
    building = time.perf_counter() - began
    found = index.top_k(queries, _K)
    seconds = [
        _seconds(functools.partial(index.top_k, queries, _K))
        for _ in range(repeats)
    ]
    entry = {
        "candidates": len(candidates),
        "queries": len(queries),
        "approximate, ms a query": 1000
        * float(np.median(seconds))
        / len(queries),
        f"recall@{_K}": _recall(found.identifiers, expected.identifiers),
        "building, s": building,
    }
    print(entry, flush=True)
    return entry


def _recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Returns the share of the expected candidates that were found."""
    return float(
        np.mean(
            [
                np.isin(one, other).mean()
                for one, other in zip(expected, found, strict=True)
            ]
        )
    )


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
