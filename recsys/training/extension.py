"""Extends a trained run with new items: same weights and moments, new rows."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from recsys import files, recommender
from recsys.config import TrainConfig
from recsys.errors import InputError
from recsys.models.two_tower import TwoTower
from recsys.training.build import (
    chosen_table_optimizer,
    initialize_transitions,
    uses_sampled_softmax,
)
from recsys.training.growth import GrownData, write_log
from recsys.training.initial_table import neighbor_rows
from recsys.training.trainer import Trainer
from recsys.workdir import Workdir


def write_extension(
    grown: GrownData, output: pathlib.Path, about: dict[str, Any]
) -> None:
    """Writes the workdir of the run that extends another one.

    Its `model.keras` is the old model with more rows; the rows of old items
    and all other weights are the same, bit for bit, but for the transitions'
    values, which are counted anew. Its first checkpoint holds that model and
    the old run's optimizer, with zero moments for new rows.

    Args:
        grown: The data of both runs.
        output: The new workdir; appears when it is complete.
        about: Content of `extension.json`: the arguments of the extension.

    Raises:
        InputError: The old run has no checkpoint.
        OSError: A file could not be written.
    """
    old = Trainer(grown.config, grown.workdir, grown.data, verbose=False)
    progress = old.checkpoints.restore()
    if progress is None:
        raise InputError(
            f"{grown.workdir.checkpoints}: expected a checkpoint, which holds "
            "the state of the optimizer. Received: none"
        )
    best = recommender.restore(grown.workdir).model
    config = dataclasses.replace(
        _with_same_method(grown),
        steps_before=grown.config.steps_before + progress.global_step,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_path(output) as temporary:
        folder = Workdir(temporary)
        folder.log.mkdir(parents=True)
        write_log(grown.log, folder.log)
        for name in ("item_features", "side_information"):
            fitted: pathlib.Path = getattr(grown.workdir, name)
            if fitted.is_file():
                with folder.writing(getattr(folder, name)) as path:
                    shutil.copy(fitted, path)
        new = Trainer(config, folder, grown.grown_data, verbose=False)
        size = grown.grown_data.vocabulary.size
        for source, target in (
            (old.optimizer.variables, new.optimizer.variables),
            (best.trainable_variables, new.model.trainable_variables),
        ):
            carry(source, target, grown.indices, size)
        _initialize_new_rows(new, grown, best)
        with folder.writing(folder.model) as path:
            new.save_model(path)
        new.checkpoints.save(new.first_progress())
        with folder.writing(folder.vocabulary) as path:
            grown.grown_data.vocabulary.save(path)
        files.write_json(folder.extension, about)
        files.write_json(folder.config, config.to_dict())


def _with_same_method(grown: GrownData) -> TrainConfig:
    """Returns the new configuration with what `auto` meant for the old one."""
    before, now = (
        (
            uses_sampled_softmax(config, data.vocabulary.num_items),
            chosen_table_optimizer(config, data.vocabulary.num_items),
        )
        for config, data in (
            (grown.config, grown.data),
            (grown.grown_config, grown.grown_data),
        )
    )
    if before == now:
        return grown.grown_config
    is_sampled, optimizer = before
    config = dataclasses.replace(grown.grown_config, table_optimizer=optimizer)
    if is_sampled:
        return dataclasses.replace(config, loss="sampled_softmax")
    return config.with_full_softmax()


def carry(
    old: Iterable[keras.Variable],
    new: Iterable[keras.Variable],
    indices: np.ndarray,
    vocabulary_size: int,
) -> None:
    """Copies variables into those of a model with more items.

    Args:
        old: Variables; those with a row per item have `len(indices)` rows.
        new: Their counterparts.
        indices: `[old vocabulary size]`, the row in `new` of each old row.
            The other rows of `new` stay as they are.
        vocabulary_size: The new vocabulary's size.

    Raises:
        ValueError: Counterparts differ in more than their number of rows.
    """
    for source, target in zip(old, new, strict=True):
        values = source.numpy()
        sizes = (values.shape[:1], tuple(target.shape[:1]))
        if sizes == ((len(indices),), (vocabulary_size,)):
            grown = target.numpy()
            grown[indices] = values
            values = grown
        if values.shape != target.shape:
            raise ValueError(
                "`new` must have the variables of `old`. Received: "
                f"{target.path} of {target.shape} for {source.path} of "
                f"{values.shape}"
            )
        target.assign(values)


def _initialize_new_rows(
    trainer: Trainer, grown: GrownData, old: TwoTower
) -> None:
    """Initializes the new items' rows; zero where a layer describes them.

    Transitions are counted anew, with the keys that old items have.
    """
    tower = trainer.model.candidate_tower
    rows = tower.embedding.embeddings.numpy()
    is_new = np.ones(len(rows), bool)
    is_new[grown.indices] = False
    if tower.item_features is None:
        sequences = grown.grown_data.split.train.read_all()
        rows = neighbor_rows(rows, is_new, sequences, grown.config.seed)
        if trainer.regression is not None:
            blended = trainer.regression.blended(rows, known=~is_new)
            rows[is_new] = blended[is_new]
    else:
        rows[is_new] = 0
    tower.embedding.embeddings.assign(rows)
    if old.history_tower.transition_dim:
        keys = old.history_tower.transition_keys.numpy()
        initialize_transitions(
            grown.config.seed,
            trainer.model,
            grown.grown_data,
            (keys, grown.indices),
        )
