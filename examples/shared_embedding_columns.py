"""Several columns over one table, as with `shared_embedding_columns`.

    python examples/shared_embedding_columns.py

With `tf.feature_column` you would write

    columns = tf.feature_column.shared_embedding_columns(
        [last_liked, watch_list, candidate], dimension=8, combiner="mean")

Here a column is a call of the one layer: single-valued ids give their rows,
multi-valued ids are pooled. An item has one row, whichever column it appears
in, and all columns train it.
"""

from __future__ import annotations

import keras
import numpy as np

import recsys

VOCABULARY_SIZE, DIM = 40, 8


def build_model() -> tuple[keras.Model, keras.Model]:
    """Returns the model, and one that returns the vectors of each column."""
    table = recsys.SharedItemEmbedding(VOCABULARY_SIZE, DIM, name="items")
    last_liked = keras.Input((), dtype="int32", name="last_liked")
    watch_list = keras.Input((None,), dtype="int32", name="watch_list")
    weights = keras.Input((None,), name="watch_list_weights")
    history = keras.Input((None,), dtype="int32", name="history")
    candidate = keras.Input((), dtype="int32", name="candidate")

    columns = {
        "last_liked": table(last_liked),
        "watch_list": table(watch_list, weights=weights, pooling="mean"),
        "history": recsys.HistoryTower(table, recsys.MeanPooling())(history),
        "candidate": recsys.CandidateTower(table)(candidate),
    }
    *of_user, of_item = columns.values()
    user = keras.layers.Dense(DIM)(keras.layers.Concatenate()(of_user))
    score = keras.layers.Dot(axes=1)([user, of_item])
    inputs = [last_liked, watch_list, weights, history, candidate]
    return keras.Model(inputs, score), keras.Model(inputs, columns)


def make_inputs(num_rows: int = 256) -> dict[str, np.ndarray]:
    """Returns random columns: 0 is padding, items begin at 2."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(2, VOCABULARY_SIZE, shape, "int32")

    watch_list = draw(num_rows, 5)
    watch_list[:, 3:] *= rng.integers(0, 2, (num_rows, 2), "int32")
    return {
        "last_liked": draw(num_rows),
        "watch_list": watch_list,
        "watch_list_weights": rng.random((num_rows, 5), "float32"),
        "history": draw(num_rows, 6),
        "candidate": draw(num_rows),
    }


def main() -> tuple[keras.Model, keras.Model]:
    """Trains the model to recognize the last liked item as a candidate.

    Returns:
        What `build_model` does, trained.
    """
    keras.utils.set_random_seed(0)
    model, columns = build_model()
    inputs = make_inputs()
    again = np.arange(256) % 2 == 0
    inputs["candidate"][again] = inputs["last_liked"][again]
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.BinaryCrossentropy(from_logits=True),
    )
    losses = model.fit(inputs, again, epochs=12, verbose=0).history["loss"]
    tables = [v for v in model.variables if v.shape[0] == VOCABULARY_SIZE]
    print(f"{len(tables)} table, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return model, columns


if __name__ == "__main__":
    main()
