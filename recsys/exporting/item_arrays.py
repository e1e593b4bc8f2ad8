"""Item vectors with their ids and titles, as Parquet and as NumPy arrays.

Row i is the item with index i + 2; padding and unknown have no row.
"""

from __future__ import annotations

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.vocabulary import FIRST_ITEM_INDEX
from recsys.errors import MismatchError
from recsys.recommender import Recommender

PARQUET_FILE = "items.parquet"


def write_parquet(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes `items.parquet`: `item_id`, `title` where known, and `vector`.

    Args:
        recommender: The model with its vocabulary.
        folder: The folder to write it into.
    """
    vectors = recommender.item_vectors()[FIRST_ITEM_INDEX:]
    items = recommender.vocabulary.items
    columns = {"item_id": items["item_id"]}
    if "title" in items.column_names:
        columns["title"] = items["title"]
    columns["vector"] = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()), vectors.shape[1]
    )
    pq.write_table(pa.table(columns), folder / PARQUET_FILE, compression="zstd")


def check_parquet(recommender: Recommender, folder: pathlib.Path) -> None:
    """Reads the file and compares it with the model.

    Args:
        recommender: The model with its vocabulary.
        folder: Where `write_parquet` wrote.

    Raises:
        MismatchError: Something differs.
    """
    table = pq.ParquetFile(folder / PARQUET_FILE).read()
    vectors = np.concatenate(
        [chunk.flatten().to_numpy() for chunk in table["vector"].chunks]
    )
    own = recommender.item_vectors()[FIRST_ITEM_INDEX:]
    _check_equal(vectors.reshape(own.shape), own, "Parquet: vectors")
    for name in table.column_names[:-1]:
        if not table[name].equals(recommender.vocabulary.items[name]):
            raise MismatchError(f"Parquet: {name} differ from the model's")


def write_numpy(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes `vectors.npy`, `item_ids.npy` and, where known, `titles.npy`.

    Vectors are float32, `[num_items, embedding_dim]`, and the others Unicode;
    none needs pickle. A file each, so that the vectors can be mapped into
    memory.

    Args:
        recommender: The model with its vocabulary.
        folder: The folder to write them into.
    """
    for name, values in _arrays(recommender).items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


def check_numpy(recommender: Recommender, folder: pathlib.Path) -> None:
    """Reads the files and compares them with the model.

    Args:
        recommender: The model with its vocabulary.
        folder: Where `write_numpy` wrote.

    Raises:
        MismatchError: Something differs.
    """
    for name, own in _arrays(recommender).items():
        _check_equal(np.load(folder / f"{name}.npy"), own, f"NumPy: {name}")


def _arrays(recommender: Recommender) -> dict[str, np.ndarray]:
    vocabulary = recommender.vocabulary
    arrays = {
        "vectors": recommender.item_vectors()[FIRST_ITEM_INDEX:],
        "item_ids": vocabulary.item_ids.astype(str),
    }
    if vocabulary.titles is not None:
        arrays["titles"] = np.array([each or "" for each in vocabulary.titles])
    return arrays


def _check_equal(got: np.ndarray, own: np.ndarray, what: str) -> None:
    if not np.array_equal(got, own):
        raise MismatchError(f"{what} differ from the model's")
