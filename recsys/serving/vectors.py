"""Item vectors as Parquet, NumPy and for TensorBoard's projector."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.prepare import TRAIN_COUNT
from recsys.errors import MismatchError
from recsys.ids import FIRST_ITEM_INDEX
from recsys.recommender import Recommender

_BREAKS = re.compile(r"[\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")


def write(
    path: str | os.PathLike[str], columns: Mapping[str, Iterable[object]]
) -> None:
    """Writes columns of equal length, below a line of their headings.

    Args:
        path: The file to write.
        columns: Values by heading. None becomes nothing; tabs and line breaks
            in a text become a blank, since there is no way to quote them.
    """
    with open(path, "w", encoding="utf-8") as file:
        file.write("\t".join(columns) + "\n")
        for row in zip(*columns.values(), strict=True):
            cells = ("" if cell is None else str(cell) for cell in row)
            file.write("\t".join(_BREAKS.sub(" ", c) for c in cells) + "\n")


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


_CONFIG = """\
embeddings {
  tensor_name: "items"
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"
}
"""


def write_projector(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes vectors, what is known of the items, and the configuration.

    Args:
        recommender: The model with its vocabulary.
        folder: The folder to write them into.
    """
    vectors = recommender.item_vectors()[FIRST_ITEM_INDEX:]
    # Nine digits tell every two float32 apart.
    np.savetxt(folder / "vectors.tsv", vectors, "%.9g", delimiter="\t")
    write(folder / "metadata.tsv", _metadata(recommender))
    (folder / "projector_config.pbtxt").write_text(_CONFIG, "utf-8")


def check_projector(recommender: Recommender, folder: pathlib.Path) -> None:
    """Reads the vectors and compares them with the model.

    Args:
        recommender: The model with its vocabulary.
        folder: Where `write_projector` wrote.

    Raises:
        MismatchError: They differ, or there is another number of items.
    """
    vectors = np.loadtxt(
        folder / "vectors.tsv", np.float32, delimiter="\t", ndmin=2
    )
    own = recommender.item_vectors()[FIRST_ITEM_INDEX:]
    if not np.array_equal(vectors, own):
        raise MismatchError("projector: vectors differ from the model's")
    with (folder / "metadata.tsv").open(encoding="utf-8") as file:
        num_lines = sum(1 for _ in file)
    if num_lines != len(vectors) + 1:
        raise MismatchError(
            f"projector: {num_lines - 1} items are described, not "
            f"{len(vectors)}"
        )


def _metadata(recommender: Recommender) -> dict[str, Iterable[object]]:
    """Returns columns; the first is what the projector labels points with.

    A single column would have to go without a heading, so there are two.
    """
    vocabulary = recommender.vocabulary
    names: Sequence[str] = vocabulary.item_ids.tolist()
    if vocabulary.titles is not None:
        pairs = zip(vocabulary.titles, vocabulary.item_ids, strict=True)
        names = [title or item_id for title, item_id in pairs]
    columns: dict[str, Iterable[object]] = {
        "title": names,
        "item_id": vocabulary.item_ids,
    }
    items = vocabulary.items
    if "genres" in items.column_names:
        genres = items["genres"].to_pylist()
        columns["genres"] = ["|".join(each or ()) for each in genres]
    if TRAIN_COUNT in items.column_names:
        columns[TRAIN_COUNT] = items[TRAIN_COUNT].to_pylist()
    return columns
