"""Trains another library's recommender on a split that recsys wrote.

`scripts/benchmark_training.py --peers=PYTHON` runs this file with the
interpreter of an environment that holds the other libraries and no recsys
(docs/benchmarks.md), so it imports nothing of ours. It reads a split, trains,
recommends, and leaves two files: `<model>.jsonl`, a rankings file that recsys
scores, and `<model>.json`, what was measured. With `--check` it only says
whether the model's packages are there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys
import time
from typing import Any

import numpy as np
from measuring import peak_memory

PACKAGES = {
    "sasrec": ("torch", "rectools.models.nn.transformers.sasrec"),
    "als": ("implicit", "scipy"),
}
_SESSION_LENGTH = 200
_K = 10


def main() -> int:
    """Runs one model.

    Returns:
        The exit code: 0, or 1 when a package is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(PACKAGES), required=True)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    missing = _missing(PACKAGES[options.model])
    if missing:
        print(missing, file=sys.stderr)
        return 1
    if options.check:
        return 0
    with np.load(options.folder / "split.npz") as arrays:
        split = dict(arrays)
    run = {"sasrec": _sasrec, "als": _als}[options.model]
    measured, rankings = run(split, options)
    _write_rankings(split, rankings, options.folder / f"{options.model}.jsonl")
    measured["resident memory, GB"] = peak_memory()
    (options.folder / f"{options.model}.json").write_text(
        json.dumps(measured, indent=2) + "\n", "utf-8"
    )
    return 0


def _missing(packages: tuple[str, ...]) -> str:
    """Says which of some packages cannot be imported, in one line."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            return f"{package.partition('.')[0]}: {error}"
    return ""


def _sasrec(
    split: dict[str, np.ndarray], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """RecTools' SASRec: its defaults, but for dimension and length."""
    import pytorch_lightning
    import rectools
    import torch
    from rectools.models.nn.transformers.sasrec import SASRecModel

    torch.manual_seed(0)
    times: list[float] = []

    class Clock(pytorch_lightning.Callback):
        """Notes how long each epoch takes."""

        def on_train_epoch_start(self, *unused: Any) -> None:
            times.append(-time.perf_counter())

        def on_train_epoch_end(self, *unused: Any) -> None:
            times[-1] += time.perf_counter()

    def trainer() -> pytorch_lightning.Trainer:
        return pytorch_lightning.Trainer(
            max_epochs=options.epochs,
            min_epochs=options.epochs,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            logger=False,
            callbacks=[Clock()],
        )

    model = SASRecModel(
        n_factors=options.dim,
        session_max_len=_SESSION_LENGTH,
        epochs=options.epochs,
        get_trainer_func=trainer,
    )
    model.fit(_rectools_dataset(split, "train"))
    histories = _rectools_dataset(split, "history")
    users = np.unique(histories.user_id_map.external_ids)
    began = time.perf_counter()
    found = model.recommend(
        users=users, dataset=histories, k=_K, filter_viewed=True
    )
    seconds = time.perf_counter() - began
    rankings = {
        int(user): rows.sort_values("rank")["item_id"].to_numpy()
        for user, rows in found.groupby("user_id")
    }
    lengths = np.diff(split["train_offsets"])
    # The newest items of a user, of which all but the first are targets.
    targets = np.clip(lengths - 1, 0, _SESSION_LENGTH).sum()
    return {
        "name": f"RecTools {rectools.__version__} SASRec",
        "epochs": options.epochs,
        "seconds per epoch": float(np.mean(times)),
        "training seconds": float(np.sum(times)),
        "interactions per epoch": int(targets),
        "recommend seconds": seconds,
    }, rankings


def _rectools_dataset(split: dict[str, np.ndarray], part: str) -> Any:
    """A part of the split as RecTools reads it; times are positions."""
    import pandas as pd
    from rectools.dataset import Dataset

    offsets = split[f"{part}_offsets"]
    lengths = np.diff(offsets)
    places = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return Dataset.construct(
        pd.DataFrame(
            {
                "user_id": np.repeat(np.arange(len(lengths)), lengths),
                "item_id": split[f"{part}_items"],
                "weight": 1.0,
                "datetime": pd.to_datetime(places, unit="s"),
            }
        )
    )


def _als(
    split: dict[str, np.ndarray], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Alternating least squares of implicit: its defaults, but dimension."""
    import implicit
    import scipy.sparse
    import threadpoolctl

    def matrix(part: str) -> scipy.sparse.csr_matrix:
        items, offsets = split[f"{part}_items"], split[f"{part}_offsets"]
        shape = (len(offsets) - 1, len(split["item_ids"]))
        ones = np.ones(len(items), np.float32)
        return scipy.sparse.csr_matrix((ones, items, offsets), shape)

    model = implicit.als.AlternatingLeastSquares(
        factors=options.dim, random_state=0
    )
    train, histories = matrix("train"), matrix("history")
    # Its own threads and those of BLAS would get in each other's way.
    with threadpoolctl.threadpool_limits(1, "blas"):
        began = time.perf_counter()
        model.fit(train, show_progress=False)
        training = time.perf_counter() - began
        began = time.perf_counter()
        items, scores = model.recommend(
            np.arange(histories.shape[0]),
            histories,
            N=_K,
            filter_already_liked_items=True,
            recalculate_user=True,
        )
        seconds = time.perf_counter() - began
    # Where no candidate is left its lists end with the lowest float.
    listed = scores > np.finfo(np.float32).min / 2
    return {
        "name": f"implicit {implicit.__version__} ALS",
        "epochs": model.iterations,
        "seconds per epoch": training / model.iterations,
        "training seconds": training,
        # It learns a matrix, no next items.
        "interactions per epoch": None,
        "recommend seconds": seconds,
    }, {user: row[listed[user]] for user, row in enumerate(items)}


def _write_rankings(
    split: dict[str, np.ndarray],
    rankings: dict[int, np.ndarray],
    path: pathlib.Path,
) -> None:
    """Writes lists of items by query, in raw ids; empty where there is none."""
    with path.open("w", encoding="utf-8") as file:
        for row, query in enumerate(split["query_ids"].tolist()):
            items = split["item_ids"][rankings.get(row, [])].tolist()
            line = {"query_id": query, "items": items}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
