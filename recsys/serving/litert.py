"""A LiteRT file: a history in, the best items out, on a device.

It takes and returns indices, since its built-in operations have no strings. A
table of indices and ids is written next to it.
"""

from __future__ import annotations

import os
import pathlib
import warnings
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX
from recsys.recommender import Recommender
from recsys.serving import vectors
from recsys.serving.saved_model import best_items

# Length of the lists. A graph of fixed shapes needs a fixed number; whoever
# needs fewer items takes the first of them.
NUM_LISTED = 100
_MODEL = "recommend.tflite"
_TABLE = "items.tsv"


def write_litert(
    recommender: Recommender,
    folder: pathlib.Path,
    *,
    exclude_history: bool = True,
) -> None:
    """Writes `recommend.tflite`, and `items.tsv` with the items by index.

    The model has one input, `history`, `[1, max_history_length]` int32:
    vocabulary indices, oldest first, 0 for padding anywhere and 1 for unknown
    items. Its outputs are `items`, `[1, n]` int32, and `scores`, `[1, n]`
    float32, best first, with item 0 where none is left, and `user_embedding`,
    `[1, dim]` float32. n is `NUM_LISTED`, or the number of items if
    that is smaller.

    Args:
        recommender: The model with its vocabulary.
        folder: The folder to write into.
        exclude_history: Whether items of the history are excluded.
    """
    function = _device_function(recommender, exclude_history)
    holder = tf.Module()
    holder.held = [variable.value for variable in recommender.model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], holder
    )
    # As constants: variables would have to be initialized on the device.
    converter.experimental_enable_resource_variables = False
    # No operation that needs TensorFlow itself.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    (folder / _MODEL).write_bytes(converter.convert())
    vocabulary = recommender.vocabulary
    columns: dict[str, Iterable[object]] = {
        "index": range(FIRST_ITEM_INDEX, vocabulary.size),
        "item_id": vocabulary.item_ids,
    }
    if vocabulary.titles is not None:
        columns["title"] = vocabulary.titles
    vectors.write_table(folder / _TABLE, columns)


def ask_litert(
    recommender: Recommender,
    folder: pathlib.Path,
    histories: list[np.ndarray],
) -> dict[str, np.ndarray]:
    """Runs the file for some histories.

    Args:
        recommender: The model that it was made from.
        folder: The folder of `write_litert`.
        histories: Vocabulary indices of each.

    Returns:
        `items`, `scores`, `user_vectors` and `item_ids`; see
        `recsys.serving.formats.Answers`.
    """
    with warnings.catch_warnings():
        # About the interpreter's move to a package of its own.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(
            os.fspath(folder / _MODEL),
            # Other resolvers print to standard error.
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
    run = interpreter.get_signature_runner()
    outputs = []
    for history in histories:
        padded = np.zeros((1, recommender.max_history_length), np.int32)
        padded[0, : len(history)] = history
        outputs.append(run(history=padded))
    names = {
        "items": "items",
        "scores": "scores",
        "user_vectors": "user_embedding",
    }
    answers = {
        name: np.concatenate([output[theirs] for output in outputs])
        for name, theirs in names.items()
    }
    return {**answers, "item_ids": vectors.read_ids(folder / _TABLE)}


def _device_function(
    recommender: Recommender, exclude_history: bool
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function to convert; see `write_litert`."""
    model = recommender.model
    length = recommender.max_history_length
    num_listed = min(NUM_LISTED, recommender.vocabulary.num_items)
    popularity = recommender.popularity[np.newaxis]
    baked = None
    if not model.candidate_tower.is_table:
        baked = recommender.item_vectors()

    @tf.function(
        input_signature=[tf.TensorSpec([1, length], tf.int32, "history")]
    )
    def recommend(history: tf.Tensor) -> dict[str, tf.Tensor]:
        ids = known_first(history)
        vector = tf.cast(model.history_tower(ids, training=False), tf.float32)
        table = baked
        if table is None:
            table = tf.cast(model.candidate_tower.all_candidates(), tf.float32)
        scores = tf.where(
            tf.reduce_any(ids >= FIRST_ITEM_INDEX),
            tf.matmul(vector, table, transpose_b=True),
            popularity,
        )
        items, scores = best_items(
            scores, ids if exclude_history else None, num_listed
        )
        return {"items": items, "scores": scores, "user_embedding": vector}

    return recommend


def known_first(history: tf.Tensor) -> tf.Tensor:
    """Moves the known items of each row to the front, 0 behind them.

    Args:
        history: `[batch, length]` int32 vocabulary indices.

    Returns:
        The same shape, in the same order, without unknown items.
    """
    length = history.shape[1] or tf.shape(history)[1]
    is_known = history >= FIRST_ITEM_INDEX
    # Places as floats, which every LiteRT's top-k takes.
    place = tf.cast(tf.range(length), tf.float32)
    place = tf.where(is_known, place, place + tf.cast(length, tf.float32))
    order = tf.math.top_k(-place, length).indices
    known = tf.where(is_known, history, PADDING_INDEX)
    return tf.gather(known, order, batch_dims=1)
