"""A run's log grown by new interactions, before any model is touched."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from recsys.data import shards, sources
from recsys.data.interactions import Log
from recsys.data.merging import check_not_trained_on, merge_logs
from recsys.data.prepare import PreparedData
from recsys.data.sequences import Sequences
from recsys.data.splits import Split
from recsys.data.vocabulary import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.errors import InputError
from recsys.evaluation import audit
from recsys.training.config import (
    SEEDED_SPLITS,
    SOURCE_FIELDS,
    TrainConfig,
)
from recsys.training.inputs import prepare_log, read_log
from recsys.training.workdir import Workdir

# Where the grown log is, within the workdir of the run that goes on with it.
DATA_FOLDER = "data"


@dataclasses.dataclass(frozen=True)
class GrownData:
    """What a run goes on from, and with.

    Attributes:
        workdir: The run so far.
        config: Its configuration.
        data: Its data.
        log: Its log and the new interactions.
        grown_config: The configuration of the run that goes on.
        grown_data: Its data.
        indices: `[vocabulary size of data]` int32: which index of the grown
            vocabulary each index of the old one has now.
    """

    workdir: Workdir
    config: TrainConfig
    data: PreparedData
    log: Log
    grown_config: TrainConfig
    grown_data: PreparedData
    indices: np.ndarray

    @property
    def num_new_items(self) -> int:
        """How many items are new."""
        return self.grown_data.vocabulary.num_items - (
            self.data.vocabulary.num_items
        )


def grow_data(
    workdir: Workdir,
    source: dict[str, Any],
    output: pathlib.Path,
    changes: dict[str, Any],
) -> GrownData:
    """Reads a run's log and new interactions and puts them together.

    Args:
        workdir: The run.
        source: Where the new interactions are; arguments of `sources.read`.
        output: The workdir of the run that goes on.
        changes: What else its configuration changes.

    Returns:
        The data of both runs.

    Raises:
        InputError: The workdir holds no run, its log has changed, the new
            interactions cannot be read, do not go with the log, or the grown
            log would ask for what the model was trained on.
    """
    config = workdir.read_config()
    # First, since it is told at once whether the changes fit.
    own_source: dict[str, Any] = dict.fromkeys(SOURCE_FIELDS)
    grown_config = dataclasses.replace(
        config,
        **{**own_source, "data": str(output / DATA_FOLDER), **changes},
    )
    for name in (config.data, source["data"]):
        if shards.is_sharded(name):
            raise InputError(
                "a model is extended by one log and another, in memory; "
                "prepare shards of both and train anew. Received: the shards "
                f"{name}"
            )
    old_log = read_log(config)
    data = prepare_log(old_log, config)
    workdir.check_data(data.vocabulary)
    log = merge_logs(old_log, sources.read(**source))
    grown_data = prepare_log(log, grown_config)
    old_ids = data.vocabulary.item_ids
    indices = grown_data.vocabulary.indices_of(data.vocabulary)
    lost = old_ids[indices[FIRST_ITEM_INDEX:] == UNKNOWN_INDEX]
    if len(lost):
        raise InputError(
            "the grown log must have all items of the model. Received: "
            f"{len(lost):,} that the filters now leave out, such as {lost[0]!r}"
        )
    trained = data.split.train
    assert isinstance(trained, Sequences)  # Not of shards.
    for queries in (grown_data.split.validation, grown_data.split.test):
        if queries is not None:
            check_not_trained_on(
                queries,
                grown_data.vocabulary.item_ids,
                trained,
                old_ids,
            )
    if config.split in SEEDED_SPLITS:
        trained = dataclasses.replace(trained, items=indices[trained.items])
        _check_held_out(dataclasses.replace(grown_data.split, train=trained))
    return GrownData(
        workdir=workdir,
        config=config,
        data=data,
        log=log,
        grown_config=grown_config,
        grown_data=grown_data,
        indices=indices,
    )


def _check_held_out(split: Split) -> None:
    """Checks that users or items that are asked for were held out before.

    Args:
        split: The queries of the grown log, and what the model was trained on.

    Raises:
        InputError: The model knows some.
    """
    for check in audit(split).checks:
        if check.num_violations:
            raise InputError(
                f"the model must know nothing of what {split.protocol} holds "
                "out of the grown log, which are others than before; train "
                f"anew instead. Received: {check.num_violations:,} of "
                f"{check.num_checked:,} {check.unit} that it was trained on"
            )
