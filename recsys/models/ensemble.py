"""Several two-tower models as one: the sum of their scores, one dot product.

A sum of dot products is the dot product of the concatenated vectors. So the
item tables stand side by side in one table, as do the vectors of features, and
each encoder reads its own slice: the result is a `TwoTower` like any other,
with one index and one file. Models that differ in nothing but their seed
already make a better one together, as their errors differ (Hansen and Salamon
1990, https://doi.org/10.1109/34.58871).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.history_encoders import EncoderEnsemble
from recsys.models.item_features import FeatureSum, ItemFeatures
from recsys.models.shared_item_embedding import SharedItemEmbedding
from recsys.models.towers import PARTS, CandidateTower, HistoryTower
from recsys.models.two_tower import TwoTower


def ensemble(models: Sequence[TwoTower]) -> TwoTower:
    """Makes one model whose scores are the sums of the models' scores.

    Returns a copy: training it leaves the models as they are. It has the
    encoders' dropout, but that of items, ids and features is 0, and the table
    is a plain one, with LoRA merged. How the models were trained
    (`trained_items`, `masks_known`, a sampler, regularizers, what was frozen)
    is not part of it, except within encoders.

    Examples:
        >>> both = ensemble([first, second])                    # doctest: +SKIP
        >>> both.save("both.keras")                             # doctest: +SKIP

    Args:
        models: At least two, of the same items in the same order, and with
            features of the same meaning, if any. Their dimensions, encoders
            and `transition_dim` may differ.

    Returns:
        A built model, with a `transition_dim` that is the sum of theirs, in
        the dtype policy of the first.

    Raises:
        TypeError: One is not a `TwoTower`.
        ValueError: The models cannot be summed; the message says why.
    """
    models = list(models)
    for model in models:
        if not isinstance(model, TwoTower):
            raise TypeError(
                "`models` must be TwoTower models. Received: "
                f"{type(model).__name__}"
            )
    if len(models) < 2:
        raise ValueError(
            f"`models` must be at least two. Received: {len(models)}"
        )
    for model in models:
        if not model.built:
            model.build()
    both, layers = _unfilled(models)
    both.build()
    # Some encoders create their weights at the first call.
    both({"history_ids": tf.constant([[FIRST_ITEM_INDEX]])})
    _assign(both, models)
    layers.assign()
    return both


def _unfilled(models: list[TwoTower]) -> tuple[TwoTower, _Layers]:
    """Makes a model that reads what all models read, and its feature layers."""
    histories = [model.history_tower for model in models]
    candidates = [model.candidate_tower for model in models]
    tables = [tower.embedding for tower in candidates]
    dims = [table.embedding_dim for table in tables]
    size = _common("vocabulary_size", [t.vocabulary_size for t in tables])
    sketches = [tower for tower in histories if tower.transition_dim]
    transition_dim = sum(tower.transition_dim for tower in sketches)
    constants = {
        name: _common(name, [getattr(tower, name) for tower in sketches])
        for name in ("transition_weight", "transition_decay")
        if sketches
    }
    dtype = models[0].dtype_policy
    layers = _Layers(sum(dims))
    table = SharedItemEmbedding(size, sum(dims), dtype=dtype)
    names = ("item_features", *(f"{part}_features" for part in PARTS))
    encoder = EncoderEnsemble(
        [_copied(tower.encoder) for tower in histories], dims, dtype=dtype
    )
    both = TwoTower(
        HistoryTower(
            table,
            encoder,
            transition_dim=transition_dim,
            dtype=dtype,
            **constants,
            **{
                n: layers.beside(n, [getattr(tower, n) for tower in histories])
                for n in names
            },
        ),
        CandidateTower(
            table,
            layers.beside(names[0], [t.item_features for t in candidates]),
            transition_dim=transition_dim,
            dtype=dtype,
        ),
        dtype=dtype,
    )
    return both, layers


def _assign(both: TwoTower, models: list[TwoTower]) -> None:
    """Fills the towers' own weights, and those of table and encoders."""
    histories = [model.history_tower for model in models]
    tower = both.history_tower
    rows = [each.embedding.table.rows() for each in histories]
    tower.embedding.embeddings.assign(_beside(rows))
    if tower.user_features is not None:
        tower.start.assign(_beside([each.start for each in histories]))
    for old, copy in zip(histories, tower.encoder.encoders, strict=True):
        copy.set_weights(old.encoder.get_weights())
    if sketches := [m for m in models if m.history_tower.transition_dim]:
        keys = [model.history_tower.transition_keys for model in sketches]
        values = [m.candidate_tower.transition_values for m in sketches]
        tower.transition_keys.assign(_beside(keys))
        both.candidate_tower.transition_values.assign(_beside(values))


class _Layers:
    """Layers of features that stand beside each other in one.

    Args:
        dim: The length of their vectors together.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        # Each layer beside those that it is made from, by what these are.
        self._made: dict[tuple[int, ...], tuple[Any, list[Any]]] = {}

    def beside(self, name: str, layers: list[Any]) -> Any:
        """Returns one layer for several, the same for the same ones.

        Args:
            name: What they are for, for messages.
            layers: One of each model, or None for each.

        Raises:
            ValueError: They are not of one kind or differ in their features.
        """
        kinds = [type(layer).__name__ for layer in layers]
        kind = _common(f"the layer of {name}", kinds)
        if layers[0] is None:
            return None
        if type(layers[0]) not in (ItemFeatures, FeatureSum):
            raise ValueError(
                f"`{name}` must be an ItemFeatures or a FeatureSum to be put "
                f"into an ensemble. Received: {kind}"
            )
        key = tuple(map(id, layers))
        if key not in self._made:
            sizes = ("num_values", "values_per_item", "vector_dim", "scale")
            for size in sizes:
                if hasattr(layers[0], size):
                    found = [getattr(layer, size) for layer in layers]
                    _common(f"{name}.{size}", found)
            for old in layers[1:]:
                same = zip(_held(old), _held(layers[0]), strict=True)
                if not all(np.array_equal(a, b) for a, b in same):
                    raise ValueError(
                        f"`{name}` must hold the same features of every item "
                        "in all models. Received: different ones"
                    )
            config = {**layers[0].get_config(), "embedding_dim": self._dim}
            made = type(layers[0]).from_config(config)
            self._made[key] = made, layers
        return self._made[key][0]

    def assign(self) -> None:
        """Fills the layers, which are built by now."""
        for new, layers in self._made.values():
            for name in _TRAINED:
                if getattr(new, name, None) is not None:
                    found = [getattr(layer, name) for layer in layers]
                    getattr(new, name).assign(_beside(found))
            held = _held(layers[0])
            for variable, old in zip(_held(new), held, strict=True):
                variable.assign(old)


# What layers of features train, one column for each of the vector's, and what
# they know of every item.
_TRAINED = ("embeddings", "projection")
_HELD = ("values", "value_weights", "vectors")


def _held(layer: keras.layers.Layer) -> list[Any]:
    found = [getattr(layer, name, None) for name in _HELD]
    return [each for each in found if each is not None]


def _beside(parts: Sequence[Any]) -> tf.Tensor:
    """Concatenates values by their last axis, float32."""
    return tf.concat([tf.cast(part, tf.float32) for part in parts], axis=-1)


def _common(name: str, values: Sequence[Any]) -> Any:
    """Returns what all models have."""
    if any(value != values[0] for value in values):
        raise ValueError(
            f"`models` must agree on {name}. Received: "
            f"{', '.join(map(str, values))}"
        )
    return values[0]


def _copied(encoder: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a layer like it, not yet built."""
    return type(encoder).from_config(encoder.get_config())
