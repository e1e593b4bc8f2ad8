"""Recomputes a trained model's results by an independent library.

Run it from the checkout, after training:

    python scripts/verify_rankings.py --workdir=runs/movielens-small

The model is evaluated, its lists go to a file as `--write_rankings` writes
them, and ir-measures (extra `[test]`) computes every metric again from that
file and the relevant items alone. The order of a list counts there, not its
scores, so queries with equal scores on their list are counted: only there
may the two differ. Exit code 1 where a metric differs by more than 1e-6.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from recsys.command_line import (
    EXIT_FAILED,
    Command,
    add_model_flag,
    load_tensorflow,
    model_folder,
)
from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.errors import missing_extra
from recsys.evaluation import (
    Evaluation,
    evaluate,
    query_ids,
    write_rankings,
)
from recsys.evaluation.results import aligned
from recsys.evaluation.run import evaluation_data
from recsys.workdir import Workdir

_TOLERANCE = 1e-6
# By our names, those of ir-measures.
_MEASURES = {
    "recall": "R",
    "hit_rate": "Success",
    "precision": "P",
    "ndcg": "nDCG",
    "mrr": "RR",
    "map": "AP",
}

COMMAND = Command(
    "verify_rankings",
    "Computes a model's metrics again from its exported rankings, by an "
    "independent library.",
    ["scripts/verify_rankings.py --workdir=runs/movielens-small"],
)
add_model_flag(COMMAND)
COMMAND.add_flag(
    str,
    "rankings",
    "Keep the exported rankings in this file.",
    group="Model",
)


def main(values: dict[str, Any]) -> int:
    """Evaluates twice and compares.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    folder = Workdir(model_folder(values))
    config = folder.read_config()
    vocabulary = Vocabulary.load(folder.vocabulary)
    data = evaluation_data(config, vocabulary, {}, None).data
    queries, _ = data.split.reported
    load_tensorflow()
    import recsys

    model = evaluate(
        recsys.load(folder.path),
        queries,
        protocol=data.split.protocol,
        exclude_history=config.excludes_history,
    )
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(
            values["rankings"] or pathlib.Path(temporary, "rankings.jsonl")
        )
        write_rankings(model, data.vocabulary, path)
        theirs = recompute(path, relevant_ids(queries, data.vocabulary), model)
    ours = model.metrics()
    print(
        aligned(
            ["metric", "recsys", "ir-measures", "difference"],
            [
                [
                    name,
                    f"{ours[name]:.8f}",
                    f"{theirs[name]:.8f}",
                    f"{abs(ours[name] - theirs[name]):.1e}",
                ]
                for name in theirs
            ],
        )
    )
    largest = max(abs(ours[name] - theirs[name]) for name in theirs)
    print(
        f"\n{model.num_queries:,} queries, {num_tied(model):,} of them with "
        f"equal scores on their list; largest difference {largest:.1e}"
    )
    return 0 if largest <= _TOLERANCE else EXIT_FAILED


def relevant_ids(
    queries: Queries, vocabulary: Vocabulary
) -> dict[str, dict[str, int]]:
    """Returns the relevant raw item ids of each query, all of grade 1."""
    items, offsets = queries.targets(np.arange(len(queries)))
    ids = vocabulary.decode(items)
    return {
        name: dict.fromkeys(ids[begin:end], 1)
        for name, begin, end in zip(
            query_ids(queries), offsets[:-1], offsets[1:], strict=True
        )
    }


def recompute(
    path: pathlib.Path, relevant: dict[str, dict[str, int]], model: Evaluation
) -> dict[str, float]:
    """Computes the metrics of a rankings file with ir-measures.

    Args:
        path: The file.
        relevant: Grades by query and item.
        model: Names the cuts.

    Returns:
        The averages over the queries, by our names.

    Raises:
        InputError: ir-measures is not installed.
    """
    try:
        import ir_measures
    except ImportError as error:
        raise missing_extra("this script", "test", error) from error
    run = {}
    with path.open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            run[line["query_id"]] = {
                item: -float(place) for place, item in enumerate(line["items"])
            }
    measures = {
        f"{name}@{k}": ir_measures.parse_measure(f"{theirs}@{k}")
        for name, theirs in _MEASURES.items()
        for k in model.ks
    }
    found = ir_measures.calc_aggregate(measures.values(), relevant, run)
    return {name: found[measure] for name, measure in measures.items()}


def num_tied(model: Evaluation) -> int:
    """Counts queries with two equal scores on their list."""
    scores = model.top_scores
    assert scores is not None  # Lists were asked for.
    tied = (scores[:, 1:] == scores[:, :-1]) & np.isfinite(scores[:, 1:])
    return int(np.count_nonzero(tied.any(axis=1)))


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
