"""Files for TensorBoard's embedding projector.

`tensorboard --logdir=FOLDER` shows them; https://projector.tensorflow.org
loads the two TSV files.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from recsys.data.prepare import TRAIN_COUNT
from recsys.data.vocabulary import FIRST_ITEM_INDEX
from recsys.errors import MismatchError
from recsys.exporting import tsv
from recsys.recommender import Recommender

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
    tsv.write(folder / "metadata.tsv", _metadata(recommender))
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
