"""Builds the model and the optimizer that a configuration describes."""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np
import pyarrow as pa

from recsys.config import TrainConfig, parse_names
from recsys.data.features import ItemEncoder
from recsys.data.prepare import TRAIN_TARGETS, PreparedData, train_counts
from recsys.data.side_information import SideEncoder
from recsys.data.vocabulary import Vocabulary
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.history_encoders import (
    GRUEncoder,
    MeanPooling,
    SelfAttentionEncoder,
)
from recsys.models.item_features import FeatureSum, ItemFeatures
from recsys.models.shared_item_embedding import SharedItemEmbedding
from recsys.models.towers import CandidateTower, HistoryTower
from recsys.models.two_tower import TwoTower
from recsys.negatives import NegativeSampler
from recsys.optimizers import LaterSchedule, LazyAdam, RowwiseAdagrad
from recsys.training.initial_table import (
    FeatureRegression,
    co_occurrence_vectors,
    explain_rows,
    transition_keys,
    transition_values,
)

# Largest catalog for which `loss="auto"` is the full softmax.
LARGEST_FULL_SOFTMAX = 20_000


def build_model(
    config: TrainConfig,
    vocabulary_size: int,
    item_features: ItemFeatures | None = None,
    side: SideEncoder | None = None,
) -> TwoTower:
    """Returns a built model, whose towers share table and item features.

    Args:
        config: The configuration.
        vocabulary_size: Rows of the item table.
        item_features: The layer of item features, if any.
        side: The encoder of other features, if any.
    """
    dtype = dtype_policy(config)
    table = SharedItemEmbedding(
        vocabulary_size, config.embedding_dim, dtype=dtype
    )
    features: dict[str, Any] = {}
    if item_features is not None:
        features["item_features"] = item_features
        features["id_dropout"] = config.id_dropout or 0.0
    known: dict[str, Any] = {}
    if side is not None:
        for part in side.encoders:
            known[f"{part}_features"] = FeatureSum(
                side.num_values(part), config.embedding_dim, dtype=dtype
            )
        if known:
            known["feature_dropout"] = config.feature_dropout
    model = TwoTower(
        HistoryTower(
            table,
            encoder=_build_encoder(config, dtype),
            item_dropout=config.item_dropout,
            transition_dim=config.transition_dim,
            transition_weight=config.transition_weight,
            dtype=dtype,
            **features,
            **known,
        ),
        CandidateTower(
            table,
            transition_dim=config.transition_dim,
            dtype=dtype,
            **features,
        ),
        dtype=dtype,
    )
    model.build()
    return model


def dtype_policy(config: TrainConfig) -> str:
    """Returns the name of Keras's policy for all layers."""
    if config.precision == "float32":
        return "float32"
    return f"mixed_{config.precision}"


def float32_copy(model: TwoTower) -> TwoTower:
    """Returns a built model of the same layers that computes in float32.

    Args:
        model: A model of any precision. `copy_weights` fills the other one.
    """
    text = json.dumps(model.get_config())
    text = text.replace(model.dtype_policy.name, "float32")
    copy = TwoTower.from_config(json.loads(text))
    copy.build()
    return copy


def copy_weights(source: TwoTower, target: TwoTower) -> None:
    """Copies all variables.

    Args:
        source: A built model.
        target: Another one of the same layers.
    """
    for old, new in zip(source.variables, target.variables, strict=True):
        new.assign(old)


def build_item_features(
    config: TrainConfig, encoder: ItemEncoder, items: pa.Table
) -> ItemFeatures:
    """Returns the layer that holds the items' features.

    Args:
        config: The configuration.
        encoder: The encoder.
        items: One row per item of the vocabulary, in its order.
    """
    encoded = encoder.encode(items)
    layer = ItemFeatures(
        len(items) + FIRST_ITEM_INDEX,
        config.embedding_dim,
        num_values=encoder.num_values,
        values_per_item=encoded.values.shape[1],
        vector_dim=encoder.vector_dim,
        dtype=dtype_policy(config),
    )
    layer.set_features(encoded.values, encoded.weights, encoded.vectors)
    return layer


def initialize_table(
    config: TrainConfig,
    model: TwoTower,
    data: PreparedData,
    regression: FeatureRegression | None = None,
) -> None:
    """Initializes the item table and the item features.

    With `table_init="co_occurrence"`, the vectors get a standard deviation of
    0.1, and noise of 0.02 to distinguish items without neighbors; a regression
    moves those of rare items. An `ItemFeatures` starts with the part of the
    rows that it explains, and the rows keep the rest; rows of untrained items
    are zero.

    Args:
        config: The configuration.
        model: A built model.
        data: The training data. Of sharded data, one group is read: a few
            million interactions of randomly drawn users.
        regression: Predicts rows from item features; None for no features.
    """
    table = model.candidate_tower.embedding.embeddings
    if config.table_init == "co_occurrence":
        vectors = co_occurrence_vectors(
            data.sample(config.seed), *table.shape, seed=config.seed
        )
        noise = np.random.default_rng(config.seed).standard_normal(table.shape)
        rows = (0.1 * vectors + 0.02 * noise).astype(np.float32)
        table.assign(rows if regression is None else regression.blended(rows))
    features = model.candidate_tower.item_features
    if features is not None:
        trained = trained_items(data.vocabulary)
        table.assign(explain_rows(features, table.numpy(), trained))
    initialize_transitions(config.seed, model, data)


def initialize_transitions(
    seed: int,
    model: TwoTower,
    data: PreparedData,
    old: tuple[np.ndarray, np.ndarray] | None = None,
) -> None:
    """Fills the sketch of the log's transitions, if the model has one.

    Args:
        seed: Draws the keys.
        model: A built model.
        data: The training data; of sharded data, one group is read.
        old: The keys of another model, and their rows in this one.
    """
    tower = model.history_tower
    if not tower.transition_dim:
        return
    size = data.vocabulary.size
    keys = transition_keys(size, tower.transition_dim, seed)
    if old is not None:
        keys[old[1]] = old[0]
    values = transition_values(
        data.sample(seed), keys, decay=tower.transition_decay
    )
    tower.transition_keys.assign(keys)
    model.candidate_tower.transition_values.assign(values)


def trained_items(
    vocabulary: Vocabulary, total: str = TRAIN_TARGETS
) -> np.ndarray:
    """Returns the sorted indices of items with a total above 0, int32."""
    return np.flatnonzero(train_counts(vocabulary, total)).astype(np.int32)


def uses_sampled_softmax(config: TrainConfig, num_items: int) -> bool:
    """Whether the loss is the sampled softmax rather than the full one."""
    if config.loss == "auto":
        return num_items > LARGEST_FULL_SOFTMAX
    return config.loss == "sampled_softmax"


def chosen_table_optimizer(config: TrainConfig, num_items: int) -> str:
    """Returns the table optimizer with `auto` resolved."""
    if config.table_optimizer != "auto":
        return config.table_optimizer
    return "lazy_adam" if uses_sampled_softmax(config, num_items) else "dense"


def build_negative_sampler(
    config: TrainConfig, counts: np.ndarray
) -> NegativeSampler | None:
    """Returns the sampler of the negatives; None for the full softmax.

    Args:
        config: The configuration.
        counts: `[vocabulary_size]`, how often each item is a training target.
    """
    if not uses_sampled_softmax(config, len(counts) - FIRST_ITEM_INDEX):
        return None
    return NegativeSampler(
        config.negatives,
        config.num_negatives,
        len(counts),
        counts=counts,
        per_row=config.negatives_per_row,
        corrected=config.logq_correction,
        masks_known=config.mask_known_items,
        trained_only=bool(config.item_features),
    )


def describe_method(config: TrainConfig, num_items: int) -> str:
    """Describes the loss, the updates of the item table and transitions."""
    loss = "full softmax"
    if uses_sampled_softmax(config, num_items):
        kind = config.negatives.replace("_", "-")
        corrected = "" if config.logq_correction else "uncorrected "
        loss = (
            f"{corrected}sampled softmax of {config.num_negatives:,} {kind} "
            "negatives"
        )
    if config.mask_known_items:
        loss += " without known items"
    updates = {
        "dense": "Adam on all rows",
        "lazy_adam": "Adam on rows with a gradient",
        "rowwise_adagrad": "Adagrad on rows with a gradient",
    }[chosen_table_optimizer(config, num_items)]
    text = f"loss: {loss}; item table of {num_items:,} items: {updates}"
    if config.transition_dim:
        text += (
            f"; transitions: {config.transition_dim} dimensions with a weight "
            f"of {config.transition_weight:g}"
        )
    return text


def build_optimizer(
    config: TrainConfig, steps_per_epoch: int, num_items: int
) -> keras.optimizers.Optimizer:
    """Returns Adam with warm-up and cosine decay over all epochs.

    A run that extends another keeps its moments and its step count, which
    their bias correction needs; the schedule starts after those steps.

    Args:
        config: The configuration.
        steps_per_epoch: Approximate number of steps in an epoch.
        num_items: Number of items, which decides `auto`.
    """
    num_steps = config.num_epochs * steps_per_epoch
    warmup_steps = min(config.warmup_steps, num_steps // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(1, num_steps - warmup_steps),
    )
    if config.steps_before:
        schedule = LaterSchedule(schedule, config.steps_before)
    table_optimizer = chosen_table_optimizer(config, num_items)
    if table_optimizer != "dense":
        lazy = table_optimizer == "lazy_adam"
        return (LazyAdam if lazy else RowwiseAdagrad)(
            learning_rate=schedule,
            beta_2=config.adam_beta_2,
            weight_decay=config.weight_decay or None,
        )
    return keras.optimizers.AdamW(
        learning_rate=schedule,
        beta_2=config.adam_beta_2,
        weight_decay=config.weight_decay,
    )


def _build_encoder(config: TrainConfig, dtype: str) -> keras.layers.Layer:
    if config.encoder == "mean_pooling":
        return MeanPooling(dropout=config.dropout, dtype=dtype)
    if config.encoder == "gru":
        return GRUEncoder(dropout=config.dropout, dtype=dtype)
    if config.encoder == "self_attention":
        return SelfAttentionEncoder(
            num_blocks=config.num_blocks,
            num_heads=config.num_heads,
            dropout=config.dropout,
            max_distance=config.max_history_length,
            reads_times="age" in parse_names(config.time_features),
            dtype=dtype,
        )
    raise ValueError(
        "`encoder` must be mean_pooling, gru or self_attention. Received: "
        f"{config.encoder!r}"
    )
