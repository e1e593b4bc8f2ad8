"""Trains another library's recommender on a split that recsys wrote.

`scripts/benchmark_training.py --peers=PYTHON` runs this file with the
interpreter of an environment that holds the other libraries and no recsys
(docs/benchmarks.md), so it imports nothing of ours. It reads a split, trains,
recommends, and leaves its lists, `<model>-<part>-<epoch>.jsonl`, which recsys
scores, and `<model>.json`, what was measured. With `--check` it only says
whether the model's packages are there.

The models trained by epochs recommend after each of them, so that recsys can
say when each was at its best; that time is not part of the training's.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import peak_memory, seconds_per_epoch

PACKAGES = {
    "sasrec": ("torch", "rectools.models.nn.transformers.sasrec"),
    "flat_sasrec": ("torch", "rectools.fast_transformers"),
    "replay_sasrec": ("torch", "replay.nn.sequential"),
    "replay_two_tower": ("torch", "replay.nn.sequential"),
    "als": ("implicit", "scipy"),
}
PARTS = ("validation", "test")
_K = 10
# RecTools' default, for RePlay too, which has none.
_BATCH_SIZE = 128
# RePlay's attention takes so many histories of similar length at once.
_BUCKET_SIZE = 16


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
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--length", type=int, default=200)
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
    runs = {
        "sasrec": _sasrec,
        "flat_sasrec": _flat_sasrec,
        "replay_sasrec": _replay,
        "replay_two_tower": _replay,
        "als": _als,
    }
    measured = runs[options.model](split, options)
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
) -> dict[str, Any]:
    """RecTools' SASRec: its defaults, but for dimension and length."""
    import pytorch_lightning
    import rectools
    import torch
    from rectools.models.nn.transformers.sasrec import SASRecModel

    torch.manual_seed(0)
    times: list[float] = []
    recommending: list[float] = []
    datasets = {part: _rectools_dataset(split, part) for part in PARTS}

    def recommend(part: str) -> tuple[float, dict[int, np.ndarray]]:
        users = np.unique(datasets[part].user_id_map.external_ids)
        began = time.perf_counter()
        found = model.recommend(
            users=users, dataset=datasets[part], k=_K, filter_viewed=True
        )
        seconds = time.perf_counter() - began
        return seconds, {
            int(user): rows.sort_values("rank")["item_id"].to_numpy()
            for user, rows in found.groupby("user_id")
        }

    class Clock(pytorch_lightning.Callback):
        """Notes how long each epoch takes, and recommends after it."""

        def on_train_epoch_start(self, *unused: Any) -> None:
            times.append(-time.perf_counter())

        def on_train_epoch_end(self, *unused: Any) -> None:
            times[-1] += time.perf_counter()
            model.is_fitted = True  # It would refuse to recommend.
            recommending.append(
                _write_lists(split, options, len(times), recommend)
            )
            model.lightning_model.train()

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
        session_max_len=options.length,
        epochs=options.epochs,
        get_trainer_func=trainer,
    )
    model.fit(_rectools_dataset(split, "train"))
    name = f"RecTools {rectools.__version__} SASRec"
    return _measured(name, split, options, times, recommending)


def _flat_sasrec(
    split: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """RecTools' fast SASRec, which comes without a loop of training.

    Its table would start with a deviation of 1, from which it hardly learns;
    here all matrices start as those of RecTools' other SASRec and of RePlay.
    """
    import rectools
    import torch
    from rectools.fast_transformers import FlatSASRecNet, build_sequences

    torch.manual_seed(0)
    users, places = _users_and_places(split["train_offsets"])
    x, y, items, _ = build_sequences(
        *map(torch.as_tensor, (users, split["train_items"], places)),
        max_len=options.length,
    )
    # It numbers the items of the training part; all are candidates here.
    numbers = torch.cat([torch.zeros(1, dtype=torch.long), items + 1])
    model = FlatSASRecNet(
        n_items=len(split["item_ids"]),
        n_factors=options.dim,
        n_blocks=options.blocks,
        n_heads=options.heads,
        session_max_len=options.length,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.xavier_normal_(parameter)

    def logits(encoded: Any) -> Any:
        return encoded @ model.all_item_embeddings().T

    return _train(
        f"RecTools {rectools.__version__} FlatSASRecNet",
        model,
        (model.encode, logits),
        (numbers[x], numbers[y]),
        split,
        options,
    )


def _replay(
    split: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """RePlay's SasRec or TwoTower, with histories of like length together."""
    import pandas as pd
    import replay
    import torch
    from replay.data import FeatureHint, FeatureSource, FeatureType
    from replay.data.nn import (
        TensorFeatureInfo,
        TensorFeatureSource,
        TensorSchema,
    )
    from replay.nn.sequential import (
        LengthBucketedQueryEncoder,
        SasRec,
        TwoTower,
    )
    from replay.nn.sequential.twotower import FeaturesReader

    torch.manual_seed(0)
    num_items = len(split["item_ids"])
    feature = TensorFeatureInfo(
        "item_id",
        FeatureType.CATEGORICAL,
        is_seq=True,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[
            TensorFeatureSource(FeatureSource.INTERACTIONS, "item_id")
        ],
        cardinality=num_items,
        padding_value=num_items,
        embedding_dim=options.dim,
    )
    sizes = {
        "schema": TensorSchema([feature]),
        "embedding_dim": options.dim,
        "num_blocks": options.blocks,
        "num_heads": options.heads,
        "max_sequence_length": options.length,
    }
    if options.model == "replay_sasrec":
        model = SasRec.from_params(**sizes)
        tower = model.body
    else:
        path = str(options.folder / "items.parquet")
        pd.DataFrame({"item_id": np.arange(num_items)}).to_parquet(path)
        reader = FeaturesReader(sizes["schema"], {"item_id": {}}, path)
        model = TwoTower.from_params(item_features_reader=reader, **sizes)
        tower = model.body.query_tower
    tower.encoder = LengthBucketedQueryEncoder(tower.encoder, _BUCKET_SIZE, 0)

    def encode(x: Any) -> Any:
        # Items count from 0 there, and padding is the number after the last.
        return tower({"item_id": (x - 1) % (num_items + 1)}, x > 0)

    wide = torch.as_tensor(_padded(split, "train", options.length + 1))
    x = wide[:, :-1]
    return _train(
        f"RePlay {replay.__version__} {type(model).__name__}",
        model,
        (encode, model.get_logits),
        (x, torch.where(x > 0, wide[:, 1:], 0)),
        split,
        options,
    )


def _train(
    name: str,
    model: Any,
    functions: tuple[Callable[[Any], Any], Callable[[Any], Any]],
    sequences: tuple[Any, Any],
    split: dict[str, np.ndarray],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Trains a network with the full softmax over its real targets alone.

    That skips the logits of padding, which both libraries' own losses make;
    Adam is as both set it. Batches lie in memory and are only sliced.

    Args:
        name: Of the model.
        model: Its weights.
        functions: From `[batch, length]` items, counted from 1 and padded on
            the left by 0, to a vector at each position, and from vectors to
            logits of all items.
        sequences: Such items, and the next ones, 0 where there is none.
        split: The split.
        options: The command's.

    Returns:
        What was measured.
    """
    import torch

    encode, logits = functions
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.9, 0.98))

    def recommend(part: str) -> tuple[float, dict[int, np.ndarray]]:
        began = time.perf_counter()
        histories = torch.as_tensor(_padded(split, part, options.length))
        users, _ = _users_and_places(split[f"{part}_offsets"])
        lists = []
        with torch.no_grad():
            for rows in torch.arange(len(histories)).split(512):
                scores = logits(encode(histories[rows])[:, -1])
                begin, end = np.searchsorted(users, [rows[0], rows[-1] + 1])
                seen = split[f"{part}_items"][begin:end]
                scores[users[begin:end] - int(rows[0]), seen] = -torch.inf
                top = scores.topk(min(_K, scores.shape[1]))
                for items, found in zip(top.indices, top.values, strict=True):
                    lists.append(items[found.isfinite()].numpy())
        return time.perf_counter() - began, dict(enumerate(lists))

    times: list[float] = []
    recommending: list[float] = []
    for _ in range(options.epochs):
        model.train()
        began = time.perf_counter()
        for rows in torch.randperm(len(sequences[0])).split(_BATCH_SIZE):
            x, y = (each[rows] for each in sequences)
            loss = torch.nn.functional.cross_entropy(
                logits(encode(x)[y > 0]), y[y > 0] - 1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        times.append(time.perf_counter() - began)
        model.eval()
        recommending.append(_write_lists(split, options, len(times), recommend))
    return _measured(name, split, options, times, recommending)


def _measured(
    name: str,
    split: dict[str, np.ndarray],
    options: argparse.Namespace,
    times: list[float],
    recommending: list[float],
) -> dict[str, Any]:
    """Lays out what was measured of a model that was trained by epochs."""
    # The newest items of a user, of which all but the first are targets.
    targets = np.clip(np.diff(split["train_offsets"]) - 1, 0, options.length)
    return {
        "name": name,
        "epochs": len(times),
        "seconds": times,
        "seconds per epoch": seconds_per_epoch(times),
        "training seconds": sum(times),
        "interactions per epoch": int(targets.sum()),
        "recommend seconds": float(np.median(recommending)),
    }


def _users_and_places(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each interaction's row, and its place there."""
    lengths = np.diff(offsets)
    users = np.repeat(np.arange(len(lengths)), lengths)
    return users, np.arange(offsets[-1]) - offsets[users]


def _padded(split: dict[str, np.ndarray], part: str, length: int) -> np.ndarray:
    """Returns each row's newest items, counted from 1, padded on the left."""
    offsets = split[f"{part}_offsets"]
    users, places = _users_and_places(offsets)
    from_end = places - np.diff(offsets)[users]
    new = from_end >= -length
    rows = np.zeros([len(offsets) - 1, length], np.int64)
    rows[users[new], from_end[new]] = split[f"{part}_items"][new] + 1
    return rows


def _rectools_dataset(split: dict[str, np.ndarray], part: str) -> Any:
    """A part of the split as RecTools reads it; times are positions."""
    import pandas as pd
    from rectools.dataset import Dataset

    users, places = _users_and_places(split[f"{part}_offsets"])
    return Dataset.construct(
        pd.DataFrame(
            {
                "user_id": users,
                "item_id": split[f"{part}_items"],
                "weight": 1.0,
                "datetime": pd.to_datetime(places, unit="s"),
            }
        )
    )


def _als(
    split: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """Alternating least squares of implicit: its defaults, but dimension."""
    import implicit
    import scipy.sparse
    import threadpoolctl

    def matrix(part: str) -> scipy.sparse.csr_matrix:
        items, offsets = split[f"{part}_items"], split[f"{part}_offsets"]
        shape = (len(offsets) - 1, len(split["item_ids"]))
        ones = np.ones(len(items), np.float32)
        return scipy.sparse.csr_matrix((ones, items, offsets), shape)

    def recommend(part: str) -> tuple[float, dict[int, np.ndarray]]:
        histories = matrix(part)
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
        return seconds, {
            user: row[listed[user]] for user, row in enumerate(items)
        }

    model = implicit.als.AlternatingLeastSquares(
        factors=options.dim, random_state=0
    )
    train = matrix("train")
    # Its own threads and those of BLAS would get in each other's way.
    with threadpoolctl.threadpool_limits(1, "blas"):
        began = time.perf_counter()
        model.fit(train, show_progress=False)
        training = time.perf_counter() - began
        seconds = _write_lists(split, options, 1, recommend)
    return {
        "name": f"implicit {implicit.__version__} ALS",
        "epochs": model.iterations,
        # Its lists are those after the last iteration.
        "seconds": [training],
        "seconds per epoch": training / model.iterations,
        "training seconds": training,
        # It learns a matrix, no next items.
        "interactions per epoch": None,
        "recommend seconds": seconds,
    }


def _write_lists(
    split: dict[str, np.ndarray],
    options: argparse.Namespace,
    epoch: int,
    recommend: Callable[[str], tuple[float, dict[int, np.ndarray]]],
) -> float:
    """Writes lists of items by query, in raw ids; empty where there is none.

    Returns:
        The seconds that the test queries took.
    """
    for part in PARTS:
        seconds, lists = recommend(part)
        path = options.folder / f"{options.model}-{part}-{epoch}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for row, query in enumerate(split[f"{part}_ids"].tolist()):
                items = split["item_ids"][lists.get(row, [])].tolist()
                line = {"query_id": query, "items": items}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
