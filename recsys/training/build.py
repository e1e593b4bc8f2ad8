"""From a configuration to a model and an optimizer."""

from __future__ import annotations

import keras

from recsys.models.history_encoders import (
    GRUEncoder,
    MeanPooling,
    SelfAttentionEncoder,
)
from recsys.models.shared_item_embedding import SharedItemEmbedding
from recsys.models.towers import CandidateTower, HistoryTower
from recsys.models.two_tower import TwoTower
from recsys.training.config import TrainConfig


def build_model(config: TrainConfig, vocabulary_size: int) -> TwoTower:
    """Returns the model, built."""
    table = SharedItemEmbedding(vocabulary_size, config.embedding_dim)
    model = TwoTower(
        HistoryTower(table, encoder=_build_encoder(config)),
        CandidateTower(table),
    )
    model.build()
    return model


def build_optimizer(
    config: TrainConfig, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """Returns Adam with warm-up and cosine decay over all epochs.

    Args:
        config: The configuration.
        steps_per_epoch: About how many steps an epoch has.
    """
    num_steps = config.num_epochs * steps_per_epoch
    warmup_steps = min(config.warmup_steps, num_steps // 2)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=config.learning_rate,
        warmup_steps=warmup_steps,
        decay_steps=max(1, num_steps - warmup_steps),
    )
    return keras.optimizers.AdamW(
        learning_rate=schedule,
        beta_2=config.adam_beta_2,
        weight_decay=config.weight_decay,
    )


def _build_encoder(config: TrainConfig) -> keras.layers.Layer:
    if config.encoder == "mean_pooling":
        return MeanPooling(dropout=config.dropout)
    if config.encoder == "gru":
        return GRUEncoder(dropout=config.dropout)
    return SelfAttentionEncoder(
        num_blocks=config.num_blocks,
        num_heads=config.num_heads,
        dropout=config.dropout,
        max_distance=config.max_history_length,
    )
