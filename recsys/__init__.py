"""Two-tower retrieval models for recommendation, in TensorFlow and Keras 3.

The names below are the public ones. Each is imported on first use: `import
recsys` alone loads neither TensorFlow nor Keras, so that command lines answer
at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.errors import InputError
    from recsys.models.history_encoders import (
        GRUEncoder,
        MeanPooling,
        SelfAttentionEncoder,
    )
    from recsys.models.item_features import ItemFeatures
    from recsys.models.shared_item_embedding import SharedItemEmbedding
    from recsys.models.towers import CandidateTower, HistoryTower
    from recsys.models.two_tower import TwoTower
    from recsys.recommender import Recommender, load

    __version__: str

__all__ = [
    "CandidateTower",
    "GRUEncoder",
    "HistoryTower",
    "InputError",
    "ItemFeatures",
    "MeanPooling",
    "Recommender",
    "SelfAttentionEncoder",
    "SharedItemEmbedding",
    "TwoTower",
    "__version__",
    "load",
]

# Where each public name lives. `recsys.train`, `.evaluate` and `.recommend`
# are the command-line modules; no name here may shadow a module.
_HOMES = {
    "CandidateTower": "recsys.models.towers",
    "GRUEncoder": "recsys.models.history_encoders",
    "HistoryTower": "recsys.models.towers",
    "InputError": "recsys.errors",
    "ItemFeatures": "recsys.models.item_features",
    "MeanPooling": "recsys.models.history_encoders",
    "Recommender": "recsys.recommender",
    "SelfAttentionEncoder": "recsys.models.history_encoders",
    "SharedItemEmbedding": "recsys.models.shared_item_embedding",
    "TwoTower": "recsys.models.two_tower",
    "load": "recsys.recommender",
}

# Reached as attributes without an import of their own: recsys.training.train.
_SUBPACKAGES = (
    "baselines",
    "data",
    "evaluation",
    "exporting",
    "losses",
    "models",
    "negative_sampling",
    "optimizers",
    "retrieval",
    "streaming_frequencies",
    "training",
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Imported here because it takes longer than all the rest.
        value = importlib.import_module("importlib.metadata").version("recsys")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _SUBPACKAGES:
        return importlib.import_module(f"recsys.{name}")
    else:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})
