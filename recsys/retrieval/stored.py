"""Reads indexes that were saved."""

from __future__ import annotations

import json
import os
import pathlib

import numpy as np

from recsys.errors import InputError
from recsys.retrieval.index import ExactIndex
from recsys.retrieval.scann import SEARCHER, ScannIndex


def load(path: str | os.PathLike[str]) -> ExactIndex:
    """Reads an index.

    Args:
        path: The folder that `save` wrote.

    Returns:
        An `ExactIndex` or `ScannIndex`, as it was saved.

    Raises:
        InputError: There is no index, or ScaNN is needed and not installed.
    """
    folder = pathlib.Path(path)
    try:
        description = json.loads((folder / "index.json").read_text("utf-8"))
        identifiers = np.load(folder / "identifiers.npy")
        vectors = np.load(folder / "vectors.npy")
    except (OSError, ValueError) as error:
        raise InputError(
            f"`path` must be a folder with an index. Received: {folder} "
            f"({error})"
        ) from error
    if description["kind"] == ExactIndex.kind:
        return ExactIndex(identifiers, vectors)
    return ScannIndex(
        identifiers,
        vectors,
        num_leaves=description["num_leaves"],
        leaves_to_search=description["leaves_to_search"],
        searcher=folder / SEARCHER if description["has_searcher"] else None,
    )
