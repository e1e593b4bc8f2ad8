"""Training: configuration, the loop, checkpoints and the workdir."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys.config import PRESETS, TrainConfig

if TYPE_CHECKING:
    from recsys.training.trainer import train

__all__ = ["PRESETS", "TrainConfig", "train"]


def __getattr__(name: str) -> Any:
    # The trainer brings TensorFlow, which the configuration does not need.
    if name == "train":
        from recsys.training import trainer

        return trainer.train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
