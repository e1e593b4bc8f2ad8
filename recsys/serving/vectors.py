"""Item vectors as Parquet, NumPy and for TensorBoard's projector."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data.prepare import TRAIN_COUNT
from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX
from recsys.recommender import Recommender

# NumPy pads every text to the longest.
_MAX_UNICODE_BYTES = 2**32
_BREAKS = r"\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029"
_IN_TEXT = re.compile(f"[{_BREAKS}]+")
_IN_ID = re.compile(rf"[\\{_BREAKS}]")


def write_table(
    path: pathlib.Path, columns: Mapping[str, Iterable[object]]
) -> None:
    r"""Writes columns of equal length, separated by tabs, below their names.

    The format has no quotation marks. Tabs, line breaks and backslashes in
    `item_id` are escaped as in Python (`\t`), so that ids stay unique; tabs
    and line breaks in other columns become a blank.

    Args:
        path: The file to write.
        columns: Values by name. None becomes an empty cell.
    """

    def cell(name: str, value: object) -> str:
        text = "" if value is None else str(value)
        if name == "item_id":
            return _IN_ID.sub(
                lambda match: match[0].encode("unicode_escape").decode(), text
            )
        return _IN_TEXT.sub(" ", text)

    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(columns) + "\n")
        for row in zip(*columns.values(), strict=True):
            cells = map(cell, columns, row)
            file.write("\t".join(cells) + "\n")


def read_ids(path: pathlib.Path) -> np.ndarray:
    """Returns the `[num_items]` str column `item_id` of `write_table`."""
    names, *rows = path.read_bytes().decode().removesuffix("\n").split("\n")
    place = names.split("\t").index("item_id")
    ids = np.empty(len(rows), object)
    ids[:] = [
        row.split("\t")[place]
        .encode("latin-1", "backslashreplace")
        .decode("unicode_escape")
        for row in rows
    ]
    return ids


PARQUET_FILE = "items.parquet"


def write_parquet(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes `items.parquet`: `item_id`, `title` where known, and `vector`."""
    vectors = _vectors(recommender)
    items = recommender.vocabulary.items
    columns = {
        name: items[name]
        for name in ("item_id", "title")
        if name in items.column_names
    }
    columns["vector"] = pa.FixedSizeListArray.from_arrays(
        pa.array(vectors.ravel()), vectors.shape[1]
    )
    pq.write_table(pa.table(columns), folder / PARQUET_FILE, compression="zstd")


def read_parquet(
    recommender: Recommender, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Reads `item_vectors` and `item_ids` back."""
    items, vectors = read_items(folder)
    return {"item_vectors": vectors, "item_ids": items["item_id"].to_numpy()}


def read_items(folder: pathlib.Path) -> tuple[pa.Table, np.ndarray]:
    """Reads `items.parquet`.

    Args:
        folder: The folder of `write_parquet`.

    Returns:
        The columns of the items, and `[num_items, dim]` float32,
        their vectors.
    """
    table = pq.ParquetFile(folder / PARQUET_FILE).read()
    vectors = table["vector"].combine_chunks().flatten().to_numpy()
    return table.drop_columns("vector"), vectors.reshape(len(table), -1)


def write_numpy(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes `vectors.npy`, `item_ids.npy` and, where known, `titles.npy`.

    Vectors are float32, `[num_items, dim]`, and the others Unicode;
    none needs pickle. Separate files, so that the vectors can be mapped into
    memory.
    """
    vocabulary = recommender.vocabulary
    arrays = {
        "vectors": _vectors(recommender),
        "item_ids": _unicode(vocabulary.item_ids, "item_ids"),
    }
    if vocabulary.titles is not None:
        arrays["titles"] = _unicode(vocabulary.titles, "titles")
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=False)


def _unicode(texts: np.ndarray, name: str) -> np.ndarray:
    """Returns text, with "" for None, as an array of Unicode."""
    known = [each or "" for each in texts]
    longest = max(map(len, known))
    if 4 * longest * len(known) > _MAX_UNICODE_BYTES:
        raise InputError(
            f"{name}.npy: expected text that takes at most "
            f"{_MAX_UNICODE_BYTES >> 30} GiB at 4 bytes times the longest "
            "for each item; leave numpy out of --formats. Received: "
            f"{len(known)} items, the longest of {longest} characters"
        )
    return np.array(known)


def read_numpy(
    recommender: Recommender, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Reads `item_vectors` and `item_ids` back."""
    return {
        "item_vectors": np.load(folder / "vectors.npy"),
        "item_ids": np.load(folder / "item_ids.npy").astype(object),
    }


_CONFIG = """\
embeddings {
  tensor_name: "items"
  tensor_path: "vectors.tsv"
  metadata_path: "metadata.tsv"
}
"""


def write_projector(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes the vectors, item metadata and the projector's configuration."""
    # Nine digits identify every float32.
    np.savetxt(
        folder / "vectors.tsv", _vectors(recommender), "%.9g", delimiter="\t"
    )
    (folder / "projector_config.pbtxt").write_text(_CONFIG, "utf-8")
    vocabulary = recommender.vocabulary
    names: Iterable[str] = vocabulary.item_ids
    if vocabulary.titles is not None:
        pairs = zip(vocabulary.titles, vocabulary.item_ids, strict=True)
        names = [title or item_id for title, item_id in pairs]
    # The projector labels points with the first column. A single column
    # would have to go without a heading, so there are at least two.
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
    write_table(folder / "metadata.tsv", columns)


def read_projector(
    recommender: Recommender, folder: pathlib.Path
) -> dict[str, np.ndarray]:
    """Reads `item_vectors` and `item_ids` back."""
    vectors = np.loadtxt(
        folder / "vectors.tsv", np.float32, delimiter="\t", ndmin=2
    )
    return {
        "item_vectors": vectors,
        "item_ids": read_ids(folder / "metadata.tsv"),
    }


def _vectors(recommender: Recommender) -> np.ndarray:
    """Returns `[num_items, dim]` float32."""
    return recommender.item_vectors()[FIRST_ITEM_INDEX:]
