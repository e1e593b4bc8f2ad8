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
    from recsys.data.sources import Log
    from recsys.errors import InputError
    from recsys.models.ensemble import ensemble
    from recsys.models.history_encoders import (
        EncoderEnsemble,
        GRUEncoder,
        MeanPooling,
        SelfAttentionEncoder,
    )
    from recsys.models.item_features import FeatureSum, ItemFeatures
    from recsys.models.shared_item_embedding import SharedItemEmbedding
    from recsys.models.towers import CandidateTower, HistoryTower
    from recsys.models.two_tower import TwoTower
    from recsys.recommender import Recommender
    from recsys.runs import TrainedModel, fit, load

    __version__: str

__all__ = [
    "CandidateTower",
    "EncoderEnsemble",
    "FeatureSum",
    "GRUEncoder",
    "HistoryTower",
    "InputError",
    "ItemFeatures",
    "Log",
    "MeanPooling",
    "Recommender",
    "SelfAttentionEncoder",
    "SharedItemEmbedding",
    "TrainedModel",
    "TwoTower",
    "__version__",
    "ensemble",
    "fit",
    "load",
]

# Where each public name lives. `recsys.train`, `.evaluate` and `.recommend`
# are the command-line modules; no name here may shadow a module.
_HOMES = {
    "CandidateTower": "recsys.models.towers",
    "EncoderEnsemble": "recsys.models.history_encoders",
    "GRUEncoder": "recsys.models.history_encoders",
    "HistoryTower": "recsys.models.towers",
    "InputError": "recsys.errors",
    "FeatureSum": "recsys.models.item_features",
    "ItemFeatures": "recsys.models.item_features",
    "Log": "recsys.data.sources",
    "MeanPooling": "recsys.models.history_encoders",
    "Recommender": "recsys.recommender",
    "SelfAttentionEncoder": "recsys.models.history_encoders",
    "SharedItemEmbedding": "recsys.models.shared_item_embedding",
    "TrainedModel": "recsys.runs",
    "TwoTower": "recsys.models.two_tower",
    "ensemble": "recsys.models.ensemble",
    "fit": "recsys.runs",
    "load": "recsys.runs",
}

# Reached as attributes without an import of their own: recsys.training.train.
_MODULES = (
    "baselines",
    "beam_recommendation",
    "data",
    "evaluation",
    "histories",
    "losses",
    "metrics",
    "models",
    "negatives",
    "optimizers",
    "recommender",
    "reranking",
    "retrieval",
    "runs",
    "serving",
    "training",
    "workdir",
)

# Module paths of earlier versions, which still import.
_MOVED = {
    f"recsys.{old}": f"recsys.{new}"
    for new, names in {
        "baselines": "baselines.tuning",
        "baselines.closed_form": (
            "baselines.co_occurrences baselines.ease baselines.histories "
            "baselines.item_knn baselines.markov baselines.popularity"
        ),
        "baselines.implicit": "baselines.matrix_factorization",
        "command_line": "config_flags",
        "config": "data.choices data.cutoffs training.config",
        "data.features": "data.feature_columns data.item_features",
        "data.movielens": "data.grouplens data.tfds",
        "data.pipeline": "data.parts data.tf_options",
        "data.prepare": "data.summary training.inputs",
        "data.shard_preparation": "data.local_preparation",
        "data.sources": "data.log_blocks",
        "data.tables": "data.bad_rows data.tabular",
        "data.vocabulary": "data.id_index data.titles",
        "evaluation.comparison": "results",
        "evaluation.ranking": (
            "evaluation.candidate_ranking evaluation.full_ranking "
            "evaluation.top_lists"
        ),
        "evaluation.results": "evaluation.table evaluation.uncertainty",
        "evaluation.run": "evaluation_run stored_model",
        "files": "training.files",
        "histories": "batch_recommend",
        "losses": "sampled_softmax",
        "metrics": "list_metrics",
        "models.shared_item_embedding": "models.layer_sharing",
        "models.transformer_block": "models.attention models.dropout",
        "negatives": "item_shares negative_sampling streaming_frequencies",
        "report": "evaluation.report evaluation_report",
        "retrieval.approximate": "retrieval.scann retrieval.scann_index",
        "retrieval.index": "retrieval.identifiers retrieval.stored",
        "serving": "exporting",
        "serving.formats": (
            "exporting.formats exporting.verification serving.check"
        ),
        "serving.litert": "exporting.litert",
        "serving.saved_model": "exporting.saved_model exporting.served_model",
        "serving.vectors": (
            "exporting.item_arrays exporting.projector exporting.tsv"
        ),
        "training.checkpoints": "training.history",
        "training.cluster": "training.rendezvous",
        "training.distributed": "training.replicas",
        "training.growth": "data.merging",
        "training.initial_table": (
            "training.co_occurrence training.feature_regression "
            "training.new_rows"
        ),
        "training.trainer": "training.step",
        "workdir": "training.workdir",
    }.items()
    for old in names.split()
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


class _Registration(importlib.abc.MetaPathFinder):
    """Registers our classes with Keras as soon as it is imported.

    Keras loads a file only with classes that are registered, which ours are
    when their modules are imported; and a program that loads a file need not
    name any of them. `import recsys` alone does not import Keras. Where one of
    our modules imports it, registration waits until that one is complete.
    """

    _MODULES = ("recsys.optimizers", "recsys.negatives", "recsys.models")

    def __init__(self) -> None:
        self._num_running = 0
        self._is_searching = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Returns the usual spec of Keras or of a module of ours, watched."""
        is_ours = name.startswith("recsys.") and name not in _MOVED
        if self._is_searching or not (is_ours or name == "keras"):
            return None
        self._is_searching = True
        try:
            for finder in sys.meta_path:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    spec.loader = _Watched(spec.loader, self, is_ours)
                    return spec
        finally:
            self._is_searching = False
        return None

    def run(self, is_ours: bool, load: Any, module: types.ModuleType) -> None:
        """Loads a module, then registers our classes if nothing is running."""
        self._num_running += is_ours
        try:
            load(module)
        finally:
            self._num_running -= is_ours
        if "keras" in sys.modules and not self._num_running:
            self.register()

    def register(self) -> None:
        """Imports the modules of our classes, once."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name in self._MODULES:
            importlib.import_module(name)


class _Watched(importlib.abc.Loader):
    """Another loader, whose end `_Registration` hears of."""

    def __init__(
        self, loader: Any, registration: _Registration, is_ours: bool
    ) -> None:
        self._loader = loader
        self._registration = registration
        self._is_ours = is_ours

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: Any) -> Any:
        """Creates the module as the other loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        """Runs the module as the other loader does."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._registration.run(self._is_ours, self._loader.exec_module, module)


sys.meta_path.append(_MovedModules())
if "keras" in sys.modules:
    _Registration().register()
else:
    sys.meta_path.insert(0, _Registration())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        # Imported here because it takes longer than all the rest.
        metadata = importlib.import_module("importlib.metadata")
        errors = importlib.import_module("recsys.errors")
        value = metadata.version(errors.DISTRIBUTION)
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
