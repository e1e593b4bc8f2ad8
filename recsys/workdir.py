"""The workdir of a run: everything that another command needs."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from recsys import files
from recsys.config import TrainConfig
from recsys.data.prepare import same_training_items
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.files import can_write


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths within a workdir, and its configuration.

    Attributes:
        path: The folder.
    """

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The configuration, JSON."""
        return self.path / "config.json"

    @property
    def vocabulary(self) -> pathlib.Path:
        """The items by index, Parquet."""
        return self.path / "vocabulary.parquet"

    @property
    def item_features(self) -> pathlib.Path:
        """The values of the item features, JSON; not there without any."""
        return self.path / "item_features.json"

    @property
    def model(self) -> pathlib.Path:
        """The model with the best validation result, Keras format."""
        return self.path / "model.keras"

    @property
    def checkpoints(self) -> pathlib.Path:
        """What a killed run goes on from."""
        return self.path / "checkpoints"

    @property
    def extension(self) -> pathlib.Path:
        """Which run this one extends, JSON; not there for any other run."""
        return self.path / "extension.json"

    @property
    def metrics(self) -> pathlib.Path:
        """The results, JSON."""
        return self.path / "metrics.json"

    @property
    def logs(self) -> pathlib.Path:
        """TensorBoard logs."""
        return self.path / "logs"

    def read_config(self) -> TrainConfig:
        """Reads the configuration of a run whose model is there.

        Raises:
            InputError: The folder is missing or holds no trained model.
        """
        if not self.config.is_file() or not self.model.is_file():
            what = "no model" if self.path.is_dir() else "no such folder"
            raise InputError(
                "`workdir` must be a folder in which recsys.train has trained "
                f"a model. Received: {self.path} ({what})"
            )
        return TrainConfig.from_dict(
            files.read_json(self.config), str(self.config)
        )

    def check(self, config: TrainConfig) -> None:
        """Checks that a run may write here, without writing anything.

        Args:
            config: The run's configuration.

        Raises:
            InputError: The folder cannot be written, or holds a run of
                another configuration, or the run would go on from steps that
                were never made.
        """
        if config.steps_before and not self.extension.is_file():
            raise InputError(
                "--steps_before must be left to recsys.extend, for whose runs "
                f"it counts. Received: {config.steps_before}"
            )
        if not can_write(self.path):
            raise InputError(
                "`workdir` must be a folder that can be written. "
                f"Received: {self.path}"
            )
        if not self.config.is_file():
            return
        differing = differences(files.read_json(self.config), config.to_dict())
        if differing:
            raise InputError(
                f"{self.path}: expected no run, or one of the same "
                "configuration; name another --workdir or use the same "
                f"flags. Received: other {differing}"
            )

    def check_data(self, vocabulary: Vocabulary) -> None:
        """Checks that a run that is here was begun on the same data.

        Args:
            vocabulary: The items of the data that were read now.

        Raises:
            InputError: The run was begun on others.
        """
        if not self.config.is_file():
            return
        if not same_training_items(
            Vocabulary.load(self.vocabulary), vocabulary
        ):
            raise InputError(
                f"{self.path}: the data have changed since this run began; "
                "name another --workdir for the new ones. Received: "
                f"{vocabulary.num_items} items, not the same items and counts"
            )


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """Says how the fields of two runs differ; empty where they do not."""
    return ", ".join(
        f"{name} ({there.get(name)!r} there, {now.get(name)!r} now)"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    )
