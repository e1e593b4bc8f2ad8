"""One flag for each field of the training configuration."""

from __future__ import annotations

import dataclasses
import pathlib
import types
import typing
from collections.abc import Collection
from typing import Any

from recsys.command_line import Command, plain
from recsys.data.choices import REPEATS
from recsys.errors import InputError
from recsys.training.config import (
    ENCODERS,
    LOSSES,
    NEGATIVES,
    PRESETS,
    SPLITS,
    STRATEGIES,
    TABLE_INITS,
    TABLE_OPTIMIZERS,
    TrainConfig,
)

# What the fields mean, in the order and under the headings of `--help`.
FIELD_HELP: dict[str, dict[str, str]] = {
    "Data": {
        "data": (
            "What to read: movielens-small (bundled), "
            "tfds:movielens/<config>-ratings, "
            "synthetic:users=…,items=…,interactions=…,seed=…, or a path: a "
            "GroupLens folder or zip, a CSV, TSV or Parquet file, a folder "
            "of such parts, or what recsys.prepare_shards wrote."
        ),
        "user_column": "Column of user ids, where it has an unusual name.",
        "item_column": "Column of item ids, likewise.",
        "timestamp_column": "Column of times, likewise.",
        "rating_column": "Column of ratings, likewise.",
        "items_file": "CSV or Parquet with the items' titles, genres, ….",
        "tfds_data_dir": "Where TensorFlow Datasets keeps prepared data.",
        "tfds_manual_dir": (
            "Folder with the original archive, used in place of a download."
        ),
        "min_rating": "Only ratings of at least this are interactions.",
        "min_item_count": "Items with fewer interactions are dropped.",
        "min_user_count": "Users with fewer interactions are dropped.",
        "repeats": (
            "Which of several interactions of one user with one item stays: "
            f"{', '.join(REPEATS)}."
        ),
        "split": f"What is held out: {', '.join(SPLITS)}.",
        "validation_from": (
            "Where the validation queries of the temporal split begin, and the "
            "training set ends: a share of the interactions between 0 and 1, "
            "an ISO date such as 2015-06-30, or a time in the log's unit."
        ),
        "test_from": "Where its test queries begin, likewise.",
        "queries_per_user": (
            "At most so many queries of one user in each of the two, the "
            "earliest; 0: all."
        ),
    },
    "Model": {
        "encoder": f"What reads a history: {', '.join(ENCODERS)}.",
        "embedding_dim": "Length of the vectors.",
        "num_blocks": "Blocks of the self-attention encoder.",
        "num_heads": "Heads of each block; they divide embedding_dim.",
        "dropout": "Share of activations dropped in training.",
        "item_dropout": "Share of a history's items hidden in training.",
        "table_init": (
            f"What the item table starts from: {', '.join(TABLE_INITS)}."
        ),
        "item_features": (
            "Columns of the items file that describe the items, so that new "
            "items can be recommended: auto (genres, year, title words), or "
            "names with commas between, where need be with a kind: name:KIND, "
            "one of categorical, multi, words, numeric, vector, or "
            "name:multi:SEPARATOR."
        ),
        "id_dropout": (
            "With item_features: how often training sees an item's features "
            "alone."
        ),
        "max_history_length": "Longest history read at once, in items.",
    },
    "Loss": {
        "loss": (
            f"{', '.join(LOSSES)}; auto is full for small catalogues and "
            "sampled for large ones."
        ),
        "negatives": f"Where negatives come from: {', '.join(NEGATIVES)}.",
        "num_negatives": "Negatives of each position.",
        "negatives_per_row": "Draw negatives for each row of a batch.",
        "mask_known_items": "A history's own items are no negatives of it.",
        "logq_correction": "Correct for how often a negative is expected.",
    },
    "Optimization": {
        "num_epochs": "Passes over the training data, at most.",
        "positions_per_batch": "About how many positions a step learns from.",
        "learning_rate": "The highest rate, after the warm-up.",
        "warmup_steps": "Steps in which the rate rises from nothing.",
        "adam_beta_2": "Memory of Adam's second moment.",
        "weight_decay": "Decoupled weight decay.",
        "table_optimizer": (
            f"How the item table is updated: {', '.join(TABLE_OPTIMIZERS)}; "
            "all but dense touch only rows with a gradient."
        ),
        "weight_average": (
            "Keep a moving average of the weights with this memory; 0 does not."
        ),
        "patience": (
            "Stop after so many epochs without a better validation NDCG@10."
        ),
        "steps_before": (
            "Steps of the run that this one extends; recsys.extend sets it."
        ),
        "seed": "The same seed gives the same weights.",
    },
    "Execution": {
        "strategy": (
            f"Who trains: {', '.join(STRATEGIES)}: one process on one device, "
            "one process on all of its GPUs, or the processes that the "
            "environment variable TF_CONFIG names (docs/distributed.md)."
        ),
        "jit_compile": (
            "Compile the step with XLA: faster on a GPU, slower on a CPU."
        ),
        "checkpoint_steps": (
            "Steps between checkpoints; each epoch ends with one anyway."
        ),
    },
}

_DEFAULT_PRESET = "movielens-small"


def add_preset_flag(command: Command) -> None:
    """Gives a command that trains the flag `--preset`."""
    command.add_flag(
        str,
        "preset",
        "Where the values of flags that are not given come from: "
        f"{', '.join(PRESETS)}.",
        group="Run",
        default=_DEFAULT_PRESET,
    )


def add_run_flags(
    command: Command, default: str, what: str = "Where the runs go."
) -> None:
    """Gives a command that trains the flags `--preset` and `--workdir`.

    Args:
        command: The command.
        default: What `run_folder` is given, for `--help`.
        what: The meaning of the folder.
    """
    add_preset_flag(command)
    command.add_flag(str, "workdir", f"{what} Default: {default}.", group="Run")


def run_folder(values: dict[str, Any], default: str) -> pathlib.Path:
    """Returns the folder that the flags of `add_run_flags` name.

    Args:
        values: The value of every flag.
        default: The folder where `--workdir` is not given; `<preset>` stands
            for the preset.

    Raises:
        InputError: `--workdir` is empty.
    """
    if values["workdir"] == "":
        raise InputError("--workdir must name a folder. Received: ''")
    return pathlib.Path(
        values["workdir"] or default.replace("<preset>", values["preset"])
    )


def add_model_flag(command: Command) -> None:
    """Gives a command that reads a trained model the flag `--workdir`."""
    command.add_flag(
        str, "workdir", "Where recsys.train put the model.", group="Model"
    )


def model_folder(values: dict[str, Any]) -> pathlib.Path:
    """Returns the folder that the flag of `add_model_flag` names.

    Raises:
        InputError: It names none.
    """
    if not values["workdir"]:
        raise InputError("--workdir must name a trained model. Received: none")
    return pathlib.Path(values["workdir"])


def add_config_flags(
    command: Command, names: Collection[str] | None = None
) -> None:
    """Gives a command a flag for each field.

    No flag has a default of its own: one that is not given is None and leaves
    the field to the preset and to the configuration.

    Args:
        command: The command.
        names: Which fields. Default: all.
    """
    groups = {
        name: (group, text)
        for group, members in FIELD_HELP.items()
        for name, text in members.items()
    }
    annotations = typing.get_type_hints(TrainConfig)
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    # Those with help come in its order, any others behind them.
    for name in [*groups, *(fields.keys() - groups.keys())]:
        if name not in fields or (names is not None and name not in names):
            continue
        group, text = groups.get(name, ("Other", "A field of TrainConfig."))
        if names is None:
            text += _defaults(name, fields[name].default)
        command.add_flag(_kind(annotations[name]), name, text, group=group)


def given_fields(values: dict[str, Any]) -> dict[str, Any]:
    """Returns those flags that are fields and were given."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {
        name: value
        for name, value in values.items()
        if name in names and value is not None
    }


def _defaults(name: str, default: Any) -> str:
    """Says what a field is where its flag is not given."""
    presets = ", ".join(
        f"{plain(preset[name])} in {title}"
        for title, preset in PRESETS.items()
        if name in preset
    )
    if default is None and not presets:
        return ""
    text = "none" if default is None else plain(default)
    return f" Default: {text}{presets and f' ({presets})'}."


def _kind(annotation: Any) -> type:
    """Returns the type of a field: `float` for `float | None`."""
    if isinstance(annotation, types.UnionType):
        [annotation] = [
            part
            for part in typing.get_args(annotation)
            if part is not types.NoneType
        ]
    if not isinstance(annotation, type):
        raise TypeError(
            "a configuration field must have a plain type. Received: "
            f"{annotation}"
        )
    return annotation
