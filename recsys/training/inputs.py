"""From a configuration to data, without TensorFlow.

Apart from the models so that a mistake in the data is told at once, before
seconds have gone into loading TensorFlow.
"""

from __future__ import annotations

from recsys.data import sources, splits
from recsys.data.interactions import Log
from recsys.data.prepare import PreparedData, prepare
from recsys.training.config import TrainConfig


def build_data(config: TrainConfig) -> PreparedData:
    """Reads, filters and splits what the configuration names.

    Raises:
        InputError: The data cannot be read or are too few.
    """
    return prepare_log(read_log(config), config)


def read_log(config: TrainConfig) -> Log:
    """Reads the log that the configuration names.

    Raises:
        InputError: It cannot be read.
    """
    return sources.read(
        config.data,
        user_column=config.user_column,
        item_column=config.item_column,
        timestamp_column=config.timestamp_column,
        rating_column=config.rating_column,
        items_file=config.items_file,
        tfds_data_dir=config.tfds_data_dir,
        tfds_manual_dir=config.tfds_manual_dir,
    )


def prepare_log(log: Log, config: TrainConfig) -> PreparedData:
    """Filters and splits a log as the configuration says.

    Raises:
        InputError: Too little is left.
    """
    return prepare(
        log,
        lambda sequences: splits.SPLITS[config.split](sequences, config.seed),
        min_rating=config.min_rating,
        min_item_count=config.min_item_count,
        min_user_count=config.min_user_count,
        repeats=config.repeats,
    )
