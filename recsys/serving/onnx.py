"""The history tower for ONNX Runtime, with the item vectors beside it."""

from __future__ import annotations

import logging
import os
import pathlib
from typing import Any

import numpy as np
import onnxruntime
import tensorflow as tf
import tf2onnx

from recsys.errors import InputError
from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX
from recsys.recommender import Recommender
from recsys.serving import vectors
from recsys.serving.litert import known_first

# The newest that tf2onnx 1.17 writes; ONNX Runtime reads it from 1.14 on.
_OPSET = 18
_MODEL = "history_tower.onnx"


def write_onnx(recommender: Recommender, folder: pathlib.Path) -> None:
    """Writes `history_tower.onnx`, and arrays of the items.

    The model has one input, `history`, `[batch, length]` int32: vocabulary
    indices, oldest first, 0 for padding and 1 for unknown items anywhere; the
    newest `max_history_length` known ones are read. Its output `embedding` is
    `[batch, dim]` float32, zero where no item is known. Item i + 2
    is row i of `vectors.npy`, `item_ids.npy`, `popularity.npy` (float32, its
    training interactions) and, where known, `titles.npy`.

    Args:
        recommender: The model with its vocabulary.
        folder: The folder to write into.

    Raises:
        InputError: The model has an operation that ONNX does not have.
    """
    vectors.write_numpy(recommender, folder)
    np.save(
        folder / "popularity.npy", recommender.popularity[FIRST_ITEM_INDEX:]
    )
    tower = recommender.model.history_tower
    max_length = recommender.max_history_length

    signature = [tf.TensorSpec([None, None], tf.int32, "history")]

    @tf.function(input_signature=signature)
    def encode(history: tf.Tensor) -> dict[str, tf.Tensor]:
        # Never empty, which some operations of ONNX Runtime do not take.
        history = tf.pad(history, [[0, 0], [1, 0]])
        is_known = tf.cast(history >= FIRST_ITEM_INDEX, tf.int32)
        is_read = tf.cumsum(is_known, axis=1, reverse=True) <= max_length
        newest = known_first(tf.where(is_read, history, PADDING_INDEX))
        vector = tower(newest[:, :max_length], training=False)
        # For its static shape, which not every converted graph keeps.
        vector = tf.reshape(vector, [-1, tower.output_dim])
        # ONNX's one-hot counts -1, "no position", from the end.
        has_one = tf.reduce_any(newest > PADDING_INDEX, axis=1, keepdims=True)
        return {"embedding": tf.where(has_one, tf.cast(vector, tf.float32), 0)}

    # What goes wrong is raised as well.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    encode.get_concrete_function()  # Errors of the model itself come here.
    try:
        model, _ = tf2onnx.convert.from_function(
            encode, input_signature=signature, opset=_OPSET
        )
        content = model.SerializeToString()
        _session(content)
    except Exception as error:
        # tf2onnx, onnx and ONNX Runtime each raise errors of their own.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(
            "--formats=onnx needs an encoder and item features whose "
            "operations ONNX has, and a model below 2 GiB. Received: "
            f"{type(tower.encoder).__name__}: {reason}"
        ) from error
    (folder / _MODEL).write_bytes(content)


def ask_onnx(
    recommender: Recommender,
    folder: pathlib.Path,
    histories: list[np.ndarray],
) -> dict[str, np.ndarray]:
    """Runs the file for some histories, all in one batch.

    Args:
        recommender: The model that it was made from.
        folder: The folder of `write_onnx`.
        histories: Vocabulary indices of each.

    Returns:
        `user_vectors`, `item_vectors` and `item_ids`; see
        `recsys.serving.formats.Answers`.
    """
    longest = max(map(len, histories))
    history = np.zeros((len(histories), longest), np.int32)
    for row, indices in zip(history, histories, strict=True):
        row[: len(indices)] = indices
    [embedding] = _session(os.fspath(folder / _MODEL)).run(
        ["embedding"], {"history": history}
    )
    return {
        "user_vectors": embedding,
        **vectors.read_numpy(recommender, folder),
    }


def _session(model: str | bytes) -> Any:
    """Returns an ONNX Runtime session over a file or its content."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # What goes wrong is raised as well.
    return onnxruntime.InferenceSession(
        model, options, ["CPUExecutionProvider"]
    )
