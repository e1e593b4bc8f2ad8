"""A LiteRT file: a history in, the best items out, on a device.

It knows indices, not raw ids: strings are no business of its built-in
operations. A table of both is written beside it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX
from recsys.recommender import Recommender
from recsys.serving import vectors
from recsys.serving.check import ask_model

# How many items it lists. A graph of fixed shapes needs a fixed number; whoever
# needs fewer takes the first of them.
NUM_LISTED = 100


def write_litert(
    recommender: Recommender,
    path: str | os.PathLike[str],
    *,
    exclude_history: bool = True,
) -> None:
    """Writes the file.

    Its one input is `history`, `[1, max_history_length]` int32: vocabulary
    indices, oldest first, 0 for padding anywhere and 1 for unknown items. Its
    outputs are `items`, `[1, n]` int32, and `scores`, `[1, n]` float32, best
    first, with item 0 where none is left, and `user_embedding`,
    `[1, embedding_dim]` float32. n is `NUM_LISTED` or all items, if these are
    fewer.

    Args:
        recommender: The model with its vocabulary.
        path: The file to write.
        exclude_history: Whether items of the history are left out.
    """
    function = _device_function(recommender, exclude_history)
    holder = tf.Module()
    holder.held = [variable.value for variable in recommender.model.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], holder
    )
    # Constants: a variable would have to be initialized on the device.
    converter.experimental_enable_resource_variables = False
    # No operation that TensorFlow itself would have to be there for.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    content = converter.convert()
    with open(path, "wb") as file:
        file.write(content)


def write_index_table(
    recommender: Recommender, path: str | os.PathLike[str]
) -> None:
    """Writes which index stands for which item: TSV with a heading.

    Args:
        recommender: The model with its vocabulary.
        path: The file to write.
    """
    vocabulary = recommender.vocabulary
    columns: dict[str, Iterable[object]] = {
        "index": range(FIRST_ITEM_INDEX, vocabulary.size),
        "item_id": vocabulary.item_ids,
    }
    if vocabulary.titles is not None:
        columns["title"] = vocabulary.titles
    vectors.write(path, columns)


def check_litert(
    recommender: Recommender,
    path: str | os.PathLike[str],
    *,
    exclude_history: bool = True,
) -> None:
    """Runs the file and compares it with the model.

    Args:
        recommender: The model with its vocabulary.
        path: What `write_litert` wrote.
        exclude_history: As when it was written.

    Raises:
        MismatchError: It answers otherwise.
    """
    length = recommender.max_history_length
    answers = ask_model(
        recommender, exclude_history=exclude_history, longest=length
    )
    with warnings.catch_warnings():
        # Of the interpreter's move to a package of its own.
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(
            os.fspath(path),
            # The others announce themselves on standard error.
            experimental_op_resolver_type=(
                tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
        )
    run = interpreter.get_signature_runner()
    outputs = []
    for history in answers.histories:
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(history)] = history
        outputs.append(run(history=padded))
    items, scores, vectors = (
        np.concatenate([output[name] for output in outputs])
        for name in ("items", "scores", "user_embedding")
    )
    width = answers.items.shape[1]
    answers.check_lists(items[:, :width], scores[:, :width], "LiteRT")
    answers.check(vectors, answers.user_vectors, "LiteRT: user vectors")


def _device_function(
    recommender: Recommender, exclude_history: bool
) -> tf.types.experimental.PolymorphicFunction:
    """Returns the function to convert; see `write_litert`."""
    model = recommender.model
    length = recommender.max_history_length
    num_listed = min(NUM_LISTED, recommender.vocabulary.num_items)
    # Enough candidates that the history's items can be taken out of them.
    num_candidates = num_listed + length * exclude_history
    num_candidates = min(num_candidates, recommender.vocabulary.num_items)
    popularity = recommender.popularity[np.newaxis]
    baked = None
    if model.candidate_tower.item_features is not None:
        baked = recommender.item_vectors()

    @tf.function(
        input_signature=[tf.TensorSpec([1, length], tf.int32, "history")]
    )
    def recommend(history: tf.Tensor) -> dict[str, tf.Tensor]:
        ids = _known_first(history)
        vector = tf.cast(model.history_tower(ids, training=False), tf.float32)
        table = baked
        if table is None:
            table = tf.cast(model.candidate_tower.all_candidates(), tf.float32)
        scores = tf.where(
            tf.reduce_any(ids >= FIRST_ITEM_INDEX),
            tf.matmul(vector, table, transpose_b=True),
            popularity,
        )
        # Padding and unknown are cut off, not marked: one pass less.
        best = tf.math.top_k(scores[:, FIRST_ITEM_INDEX:], num_candidates)
        items, scores = best.indices + FIRST_ITEM_INDEX, best.values
        if exclude_history:
            seen = tf.reduce_any(
                items[:, :, tf.newaxis] == ids[:, tf.newaxis], axis=2
            )
            items = tf.where(seen, PADDING_INDEX, items)
            scores = tf.where(seen, tf.float32.min, scores)
            best = tf.math.top_k(scores, num_listed)
            items = tf.gather(items, best.indices, batch_dims=1)
            scores = best.values
        return {"items": items, "scores": scores, "user_embedding": vector}

    return recommend


def _known_first(history: tf.Tensor) -> tf.Tensor:
    """Moves the known items to the front, in their order, 0 behind them.

    Args:
        history: `[1, length]` int32.

    Returns:
        `[1, length]` int32.
    """
    length = history.shape[1]
    is_known = history >= FIRST_ITEM_INDEX
    # Places as floats, which LiteRT's top-k is sure to take.
    place = tf.range(length, dtype=tf.float32)
    place = tf.where(is_known, place, place + length)
    order = tf.math.top_k(-place, length).indices
    known = tf.where(is_known, history, PADDING_INDEX)
    return tf.gather(known, order, batch_dims=1)
