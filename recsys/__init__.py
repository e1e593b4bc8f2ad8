"""Two-tower retrieval models for recommendation, in TensorFlow and Keras 3.

The names below are the public ones. Each is imported on first use: `import
recsys` alone loads neither TensorFlow nor Keras, so that command lines answer
at once.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
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
_MODULES = (
    "baselines",
    "data",
    "evaluation",
    "losses",
    "metrics",
    "models",
    "negatives",
    "optimizers",
    "retrieval",
    "serving",
    "training",
)

# Published module paths of earlier versions, which still import.
_MOVED = {
    "recsys.data.feature_columns": "recsys.data.features",
    "recsys.data.item_features": "recsys.data.features",
    "recsys.exporting": "recsys.serving",
    "recsys.list_metrics": "recsys.metrics",
    "recsys.negative_sampling": "recsys.negatives",
    "recsys.training.config": "recsys.config",
    "recsys.training.workdir": "recsys.workdir",
}


class _MovedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module that a path of an earlier version means now."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Returns how to load a path that has moved; None for any other."""
        if name not in _MOVED:
            return None
        return importlib.machinery.ModuleSpec(name, self)

    def exec_module(self, module: types.ModuleType) -> None:
        """Puts the module of today in the place of the one being loaded."""
        name = module.__name__
        sys.modules[name] = importlib.import_module(_MOVED[name])


sys.meta_path.append(_MovedModules())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Imported here because it takes longer than all the rest.
        value = importlib.import_module("importlib.metadata").version("recsys")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES or f"recsys.{name}" in _MOVED:
        return importlib.import_module(f"recsys.{name}")
    else:
        raise AttributeError(f"module 'recsys' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
