"""The layers and the model; importing any of them registers all with Keras."""

from recsys.models import (
    ensemble,
    history_encoders,
    item_features,
    shared_item_embedding,
    towers,
    transformer_block,
    two_tower,
)

__all__ = [
    "ensemble",
    "history_encoders",
    "item_features",
    "shared_item_embedding",
    "towers",
    "transformer_block",
    "two_tower",
]
