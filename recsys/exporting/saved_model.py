"""A SavedModel that takes and returns raw ids, for TensorFlow alone."""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from recsys.data.vocabulary import (
    PADDING_INDEX,
    UNKNOWN_INDEX,
    Vocabulary,
)
from recsys.exporting.served_model import ServedModel
from recsys.exporting.verification import LIST_LENGTH, ask_model
from recsys.recommender import Recommender


def write_saved_model(
    recommender: Recommender,
    path: str | os.PathLike[str],
    *,
    exclude_history: bool = True,
) -> None:
    """Writes the SavedModel.

    Args:
        recommender: The model with its vocabulary.
        path: The folder to write.
        exclude_history: Whether `recommend` leaves out items of the history.
    """
    served = ServedModel(recommender, exclude_history)
    tf.saved_model.save(
        served.resources, os.fspath(path), signatures=served.signatures()
    )


def check_saved_model(
    recommender: Recommender,
    path: str | os.PathLike[str],
    *,
    exclude_history: bool = True,
) -> None:
    """Loads a SavedModel and compares it with the model.

    Args:
        recommender: The model with its vocabulary.
        path: What `write_saved_model` wrote.
        exclude_history: As when it was written.

    Raises:
        MismatchError: It answers otherwise.
    """
    loaded = tf.saved_model.load(os.fspath(path))
    answers = ask_model(recommender, exclude_history=exclude_history)
    vocabulary = recommender.vocabulary
    history = _padded_ids(vocabulary, answers.histories)
    recommended = loaded.signatures["recommend"](
        history=history,
        exclude=tf.constant([[""]]),
        k=tf.constant([LIST_LENGTH]),
    )
    answers.check_lists(
        _indices(vocabulary, recommended["item_ids"]),
        recommended["scores"].numpy(),
        "SavedModel",
    )
    encoded = loaded.signatures["user_embedding"](history=history)
    answers.check(
        encoded["embedding"].numpy(),
        answers.user_vectors,
        "SavedModel: user vectors",
    )
    items = np.unique(answers.items[answers.items > 0])
    ids = tf.constant(vocabulary.decode(items).tolist())
    vectors = answers.item_vectors[items]
    encoded = loaded.signatures["item_embedding"](item_ids=ids)
    answers.check(
        encoded["embedding"].numpy(), vectors, "SavedModel: item vectors"
    )
    similar = loaded.signatures["similar_items"](
        item_ids=ids, k=tf.constant([LIST_LENGTH])
    )
    found = _indices(vocabulary, similar["item_ids"])
    answers.check(
        similar["scores"].numpy()[found > 0],
        _cosines(vectors[:, np.newaxis], answers.item_vectors[found])[
            found > 0
        ],
        "SavedModel: similarities",
    )


def _padded_ids(
    vocabulary: Vocabulary, histories: list[np.ndarray]
) -> tf.Tensor:
    """Returns `[num_histories, length]` string, "" behind each history.

    An unknown item gets an id that is not in the vocabulary.
    """
    unknown = "unknown"
    while int(vocabulary.encode([unknown])[0]) != UNKNOWN_INDEX:
        unknown += "?"
    rows = [
        [
            unknown
            if index == UNKNOWN_INDEX
            else vocabulary.decode(index).item()
            for index in history
        ]
        for history in histories
    ]
    return tf.ragged.constant(rows, dtype=tf.string).to_tensor()


def _indices(vocabulary: Vocabulary, item_ids: tf.Tensor) -> np.ndarray:
    """Returns the indices of raw ids, padding for ""."""
    texts = np.array(
        [[each.decode() for each in row] for row in item_ids.numpy()], object
    )
    return np.where(
        texts == "", PADDING_INDEX, vocabulary.encode(texts.tolist())
    )


def _cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    return np.divide(
        (left * right).sum(axis=-1),
        norms,
        where=norms > 0,
        out=np.zeros_like(norms),
    )
