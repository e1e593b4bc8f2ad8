"""The workdir of a run: its files, and whether a run may use it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from recsys import files
from recsys.config import TrainConfig
from recsys.data.prepare import same_training_items
from recsys.data.side_information import SideEncoder
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths within a workdir, and access to everything but the model.

    Attributes:
        path: The folder; a leading `~` is expanded.
    """

    path: pathlib.Path

    def __post_init__(self) -> None:
        path = pathlib.Path(os.path.expanduser(self.path))
        object.__setattr__(self, "path", path)

    @property
    def config(self) -> pathlib.Path:
        """The configuration, JSON."""
        return self.path / "config.json"

    @property
    def vocabulary(self) -> pathlib.Path:
        """The items in the order of their indices, Parquet."""
        return self.path / "vocabulary.parquet"

    @property
    def item_features(self) -> pathlib.Path:
        """The fitted item encoder, JSON; missing without item features."""
        return self.path / "item_features.json"

    @property
    def side_information(self) -> pathlib.Path:
        """The fitted encoder of other features, JSON; missing without."""
        return self.path / "side_information.json"

    @property
    def model(self) -> pathlib.Path:
        """The model of the best epoch, in Keras format."""
        return self.path / "model.keras"

    @property
    def checkpoints(self) -> pathlib.Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def extension(self) -> pathlib.Path:
        """How the run extends another, JSON; missing for other runs."""
        return self.path / "extension.json"

    @property
    def combination(self) -> pathlib.Path:
        """Which runs a combined model is the sum of, JSON; or missing."""
        return self.path / "combination.json"

    def parts(self) -> list[dict[str, Any]]:
        """Returns `workdir`, `seed` and `loss` of each model in this one.

        Raises:
            InputError: A file is damaged.
        """
        if not self.combination.is_file():
            config = self._stored_config()
            path = str(self.path.absolute())
            return [{"workdir": path, "seed": config.seed, "loss": config.loss}]
        found = files.read_json_object(self.combination, models=list)["models"]
        kinds = {"workdir": str, "seed": int, "loss": str}
        for each in found:
            files.checked_object(each, self.combination, **kinds)
        return found

    def check_trains(self) -> None:
        """Raises InputError if the model here was combined, not trained."""
        if self.combination.is_file():
            raise InputError(
                f"{self.path}: expected a run of recsys.train. Received: a "
                "model of recsys.combine; train the models that "
                f"{self.combination.name} names, and combine those"
            )

    @property
    def log(self) -> pathlib.Path:
        """Folder of a log of the run's own: grown, or from a DataFrame."""
        return self.path / "data"

    @property
    def metrics(self) -> pathlib.Path:
        """The evaluation results, JSON."""
        return self.path / "metrics.json"

    @property
    def logs(self) -> pathlib.Path:
        """TensorBoard logs."""
        return self.path / "logs"

    @property
    def checksums(self) -> pathlib.Path:
        """SHA-256 of the model and its items, JSON."""
        return self.path / "checksums.json"

    @contextlib.contextmanager
    def writing(self, path: pathlib.Path) -> Iterator[pathlib.Path]:
        """Provides a temporary path that becomes a file with a checksum.

        Args:
            path: A file of this folder.

        Yields:
            As `files.atomic_path`.
        """
        with files.atomic_path(path) as temporary:
            yield temporary
            # Noted before the file is there, and beside the one before:
            # whenever the process dies or another reads, one of them counts.
            noted = self._noted()
            before = noted.get(path.name, [])[-1:]
            noted[path.name] = [*before, _checksum(temporary)]
            files.write_json(self.checksums, noted)

    def check_checksums(self) -> None:
        """Checks that no file has changed since it was written.

        Folders of earlier versions have no checksums.

        Raises:
            InputError: A file was damaged or replaced.
        """
        for name in self._noted():
            path = self.path / name
            if path.is_file():
                # Before reading what is noted, which a run may change.
                found = _checksum(path)
                if found not in self._noted().get(name, []):
                    raise InputError(
                        f"{path}: expected the file that this run wrote. "
                        "Received: another SHA-256; the file is damaged or "
                        "was replaced"
                    )

    def _noted(self) -> dict[str, list[str]]:
        """Returns the checksums that count, by the name of the file."""
        path = self.checksums
        noted = files.read_json_object(path) if path.is_file() else {}
        for name, found in noted.items():
            if not isinstance(found, list) or pathlib.Path(name).name != name:
                raise InputError(
                    f"{path}: expected lists of checksums by file. "
                    f"Received: {name!r}: {found!r}"
                )
        return noted

    def read_config(self, name: str = "`workdir`") -> TrainConfig:
        """Reads the configuration of a trained model.

        Args:
            name: What the message calls the folder, such as a flag.

        Raises:
            InputError: The folder is missing or holds no trained model.
        """
        if not self.config.is_file() or not self.model.is_file():
            what = "no model" if self.path.is_dir() else "no such folder"
            raise InputError(
                f"{name} must be a folder in which recsys.train has trained "
                f"a model. Received: {self.path} ({what})"
            )
        config = self._stored_config()
        self.check_checksums()
        return config

    def read_vocabulary(self) -> Vocabulary:
        """Reads the model's items."""
        return Vocabulary.load(self.vocabulary)

    def read_side_encoder(self) -> SideEncoder | None:
        """Reads the encoder of features, if the model has one."""
        path = self.side_information
        return SideEncoder.load(path) if path.is_file() else None

    def _stored_config(self) -> TrainConfig:
        fields = files.read_json(self.config)
        config = TrainConfig.from_dict(fields, str(self.config))
        if (
            pathlib.Path(config.data).name == self.log.name
            and (self.log / "interactions.parquet").is_file()
        ):
            # The folder may have been moved since.
            config = dataclasses.replace(config, data=str(self.log))
        return config

    def read_history(
        self, config: TrainConfig
    ) -> tuple[list[dict[str, float]], int | None]:
        """Reads the measures of each epoch.

        They are in the newest checkpoint or, if the checkpoints were deleted,
        in metrics.json.

        Args:
            config: The run's configuration.

        Returns:
            One dictionary per finished epoch, and the best epoch, from 0; an
            empty list and None if there is neither file.

        Raises:
            InputError: A file is damaged.
        """
        history: list[dict[str, float]] = []
        path = self.metrics
        if paths := checkpoint_paths(self.checkpoints):
            path = paths[-1] / "progress.json"
            progress = files.read_json_object(path, history=list)
            history = epoch_measures(path, progress, "history")
        elif path.is_file():
            stored = files.read_json_object(path)
            history = epoch_measures(path, stored, "training")
        try:
            return history, best_epoch(history, config.selection_metric)
        except KeyError as error:
            raise InputError(
                f"{path}: expected the selection metric of every epoch. "
                f"Received: one without {error}"
            ) from error

    def training_entries(self) -> dict[str, Any]:
        """Returns the entries about training in metrics.json, if it exists."""
        if not self.metrics.is_file():
            return {}
        stored = files.read_json_object(self.metrics)
        names = ("best_epoch", "training")
        return {name: stored[name] for name in names if name in stored}

    def stored_results(self) -> str | None:
        """Returns the stored text of a finished run's results, if any.

        Results of an evaluation with other settings do not count.

        Raises:
            InputError: A file is damaged.
        """
        if not self.metrics.is_file() or not (
            paths := checkpoint_paths(self.checkpoints)
        ):
            return None
        stored = files.read_json_object(self.metrics)
        progress = files.read_json_object(
            paths[-1] / "progress.json", finished=bool, history=list
        )
        if not progress["finished"] or (
            stored.get("training") != progress["history"]
            or stored.get("evaluated_with") != {}
        ):
            return None
        text = stored.get("text")
        if not isinstance(text, list) or not all(
            isinstance(line, str) for line in text
        ):
            raise InputError(
                f"{self.metrics}: expected `text` to be a list of lines. "
                f"Received: {type(text).__name__}"
            )
        return "\n".join(text)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Locks the folder against other runs; creates it if missing.

        The lock is released at the end of the block or of the process. Reading
        needs no lock.

        Raises:
            InputError: Another process is training here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"{self.path}: expected no other run in this folder; wait, "
                    "or name another --workdir. Received: a process that is "
                    "training in it"
                ) from error
            yield

    def check(self, config: TrainConfig) -> TrainConfig:
        """Checks that a run may write here, without writing anything.

        Args:
            config: The run's configuration.

        Returns:
            The configuration; of a run that is here already, with the values
            that were chosen when it started.

        Raises:
            InputError: The folder cannot be written or holds a run with
                another configuration or a combined model, or `steps_before`
                was set by hand.
        """
        self.check_trains()
        if config.steps_before and not self.extension.is_file():
            raise InputError(
                "`steps_before` must be left to recsys.extend, for whose runs "
                f"it counts. Received: {config.steps_before}"
            )
        if not files.can_write(self.path):
            raise InputError(
                "`workdir` must be a folder that can be written. "
                f"Received: {self.path}"
            )
        if not self.config.is_file():
            return config
        self.check_checksums()
        stored = self._stored_config().to_dict()
        config = config.with_chosen(stored)
        differing = differences(stored, config.to_dict())
        if differing:
            raise InputError(
                f"{self.path}: expected no run, or one with the same "
                "configuration; name another --workdir or use the same "
                f"flags. Received: different {differing}"
            )
        return config

    def check_data(self, vocabulary: Vocabulary) -> None:
        """Checks that the run in this folder, if any, used the same data.

        Args:
            vocabulary: The items of the data read now.

        Raises:
            InputError: The run was started on other data.
        """
        if not self.config.is_file():
            return
        if not same_training_items(self.read_vocabulary(), vocabulary):
            raise InputError(
                f"{self.path}: the data have changed since this run started; "
                "name another --workdir for the new data. Received: "
                f"{vocabulary.num_items} items, not the same items and counts"
            )


def _checksum(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the complete checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-" + "[0-9]" * 9))


def epoch_measures(
    path: pathlib.Path, entries: dict[str, Any], name: str
) -> list[dict[str, float]]:
    """Returns what a JSON file says of each finished epoch.

    Args:
        path: The file, for messages.
        entries: What it holds.
        name: The entry to return; a missing one counts as an empty list.

    Raises:
        InputError: The entry is not a list of numbers by name.
    """
    found = entries.get(name, [])
    if not isinstance(found, list) or not all(
        isinstance(epoch, dict)
        and all(
            isinstance(value, float | int) and not isinstance(value, bool)
            for value in epoch.values()
        )
        for epoch in found
    ):
        raise InputError(
            f"{path}: expected `{name}` to be a list of an epoch's measures "
            "by name, all of them numbers. Received: something else"
        )
    return found


def best_epoch(
    history: list[dict[str, float]], selection_metric: str
) -> int | None:
    """Returns the epoch with the highest validation metric, from 0.

    Args:
        history: One dictionary per finished epoch.
        selection_metric: Such as "ndcg@10".

    Returns:
        The first of the best epochs; None without a finished epoch.
    """
    if not history:
        return None
    values = [epoch[f"validation_{selection_metric}"] for epoch in history]
    return int(np.argmax(values))


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """Lists the fields in which two runs differ; empty if none do."""
    return ", ".join(
        f"{name} ({there.get(name)!r} there, {now.get(name)!r} now)"
        for name in sorted(there.keys() | now.keys())
        if there.get(name) != now.get(name)
    )
