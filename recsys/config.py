"""The configuration of a training run, its choices and its presets."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
from typing import Any

from recsys.errors import InputError

# Which of several interactions of one user with one item stay.
REPEATS = ("first", "last", "all")
# The splits that look at one user at a time: how many of a user's last
# interactions they hold out at most.
HELD_OUT_BY_USER = {"leave_last_out": 2, "validation_only": 1}


@dataclasses.dataclass(frozen=True)
class Cutoff:
    """A moment, or a share of the interactions; one of the two is None.

    Attributes:
        share: The share of all interactions that is older, between 0 and 1.
        seconds: Seconds since 1970, or a number in the unit of a log whose
            times are no dates.
        is_date: Whether it was written as a date.
    """

    share: float | None = None
    seconds: decimal.Decimal | None = None
    is_date: bool = False


def parse_cutoff(text: str, name: str) -> Cutoff:
    """Reads a cutoff.

    Args:
        text: A number strictly between 0 and 1 is a share, any other number
            a time in the log's own unit; else an ISO date (its midnight) or
            datetime, in UTC where it names no time zone.
        name: The flag that it comes from, for the error's text.

    Returns:
        The cutoff.

    Raises:
        InputError: It is none of these.
    """
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        return Cutoff(seconds=_seconds(text, name), is_date=True)
    if not number.is_finite():
        raise _error(text, name)
    if 0 < number < 1:
        return Cutoff(share=float(number))
    return Cutoff(seconds=number)


def _seconds(text: str, name: str) -> decimal.Decimal:
    """Returns the seconds from 1970 to an ISO date, exactly."""
    try:
        moment = datetime.datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise _error(text, name) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    start = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    microseconds = (moment - start) // datetime.timedelta(microseconds=1)
    return decimal.Decimal(microseconds).scaleb(-6)


def _error(text: str, name: str) -> InputError:
    return InputError(
        f"--{name} must be a share of the interactions between 0 and 1, an "
        "ISO date such as 2015-06-30, or a time in the unit of the log. "
        f"Received: {text!r}"
    )


ENCODERS = ("self_attention", "gru", "mean_pooling")
TABLE_INITS = ("random", "co_occurrence")
SPLITS = (
    "leave_last_out",
    "temporal",
    "held_out_users",
    "held_out_items",
    "validation_only",
)
# Those that the seed decides as well.
SEEDED_SPLITS = ("held_out_users", "held_out_items")
LOSSES = ("auto", "full_softmax", "sampled_softmax")
NEGATIVES = ("in_batch", "uniform", "popularity", "mixed")
STRATEGIES = ("single", "mirrored", "multi_worker")
TABLE_OPTIMIZERS = ("auto", "dense", "lazy_adam", "rowwise_adagrad")
# The fields that say where a log is and how it is read, not what is kept.
SOURCE_FIELDS = (
    "data",
    "user_column",
    "item_column",
    "timestamp_column",
    "rating_column",
    "items_file",
    "tfds_data_dir",
    "tfds_manual_dir",
)
# The fields that `loss="full_softmax"` does not read.
SAMPLING_FIELDS = (
    "negatives",
    "num_negatives",
    "negatives_per_row",
    "mask_known_items",
    "logq_correction",
)
# The fields that only `split="temporal"` reads.
TEMPORAL_FIELDS = ("validation_from", "test_from", "queries_per_user")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a training run computes.

    Each field is a flag of `python -m recsys.train`. Two runs with equal
    configurations on equal data end with equal weights.

    Raises:
        InputError: A field is out of its range.
    """

    # Data: what to read (see recsys.data.sources), and which of it to keep.
    data: str = "movielens-small"
    user_column: str | None = None
    item_column: str | None = None
    timestamp_column: str | None = None
    rating_column: str | None = None
    items_file: str | None = None
    tfds_data_dir: str | None = None
    tfds_manual_dir: str | None = None
    # Only ratings of at least this much are interactions; None keeps all.
    min_rating: float | None = None
    # k-core: items and users with fewer interactions are dropped.
    min_item_count: int = 1
    min_user_count: int = 1
    # Which of several interactions of one user with one item stays.
    repeats: str = "first"
    split: str = "leave_last_out"
    # Where the parts of the temporal split begin (see recsys.config),
    # and how many queries it takes of a user in each, the earliest; 0: all.
    validation_from: str = "0.8"
    test_from: str = "0.9"
    queries_per_user: int = 0

    # Model.
    encoder: str = "self_attention"
    embedding_dim: int = 64
    num_blocks: int = 2
    num_heads: int = 1
    dropout: float = 0.2
    # How much of a history training hides from the encoder, in whole items.
    item_dropout: float = 0.0
    # What the item table starts from: noise, or factors of what occurs near
    # what in the training set (see recsys.training.initial_table).
    table_init: str = "random"
    # Columns of the items file that describe the items (see
    # recsys.data.features): "auto", or names with commas between.
    item_features: str | None = None
    # How often training sees the features without the item's own row.
    id_dropout: float = 0.2
    # Longest history that the encoder reads at once, in items.
    max_history_length: int = 200

    # Loss: auto takes the full softmax for small catalogues and the sampled
    # one for large ones (see recsys.training.build).
    loss: str = "auto"
    # Where the sampled softmax's negatives come from (see
    # recsys.negatives), how many each position has, whether each
    # row of a batch has its own, and whether a row's own items are none.
    negatives: str = "mixed"
    num_negatives: int = 1024
    negatives_per_row: bool = False
    mask_known_items: bool = False
    # Correct logits for how often each negative is expected.
    logq_correction: bool = True

    # Optimization: Adam with linear warm-up, then cosine decay to nothing.
    num_epochs: int = 30
    positions_per_batch: int = 4_000
    learning_rate: float = 0.003
    warmup_steps: int = 300
    adam_beta_2: float = 0.98
    weight_decay: float = 0.0
    # How the item table is updated (see recsys.optimizers): dense goes through
    # all rows at each step, the others through those with a gradient. auto:
    # lazy_adam with the sampled softmax, dense with the full one.
    table_optimizer: str = "auto"
    # Evaluate and keep a moving average of the weights, of which each step
    # replaces the share 1 - weight_average; 0 keeps the weights themselves.
    weight_average: float = 0.0
    # Stop after so many epochs without a better validation NDCG@10.
    patience: int = 5
    # Steps that the optimizer made in the run that this one extends (see
    # recsys.extend); warm-up and decay begin after them.
    steps_before: int = 0
    seed: int = 0

    # Execution.
    # Who trains: this process on one device, this process on all of its GPUs,
    # or the processes that TF_CONFIG names (see docs/distributed.md).
    strategy: str = "single"
    # Compile the step with XLA: faster on a GPU, slower on a CPU.
    jit_compile: bool = False
    # Steps between checkpoints inside an epoch; each epoch ends with one.
    checkpoint_steps: int = 500

    def __post_init__(self) -> None:
        for name, choices in (
            ("encoder", ENCODERS),
            ("table_init", TABLE_INITS),
            ("repeats", REPEATS),
            ("split", SPLITS),
            ("loss", LOSSES),
            ("negatives", NEGATIVES),
            ("table_optimizer", TABLE_OPTIMIZERS),
            ("strategy", STRATEGIES),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(
                    f"--{name} must be one of {', '.join(choices)}. "
                    f"Received: {value!r}"
                )
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if not value >= lowest:
                raise InputError(
                    f"--{name} must be at least {lowest}. Received: {value}"
                )
        if self.seed > _HIGHEST_SEED:
            raise InputError(
                f"--seed must be at most {_HIGHEST_SEED}. Received: {self.seed}"
            )
        for name in (
            "dropout",
            "item_dropout",
            "id_dropout",
            "adam_beta_2",
            "weight_average",
        ):
            value = getattr(self, name)
            if not value < 1:
                raise InputError(f"--{name} must be below 1. Received: {value}")
        if self.encoder == "self_attention" and (
            self.embedding_dim % self.num_heads
        ):
            raise InputError(
                f"--num_heads must divide --embedding_dim="
                f"{self.embedding_dim}. Received: {self.num_heads}"
            )

        self._check_temporal_fields()
        self._check_loss()
        if self.jit_compile and self.strategy != "single":
            raise InputError(
                "--jit_compile must be false with "
                f"--strategy={self.strategy}. Received: true"
            )

    def _check_loss(self) -> None:
        if self.loss == "full_softmax":
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in SAMPLING_FIELDS and value != field.default:
                    raise InputError(
                        f"--{field.name} must go with the sampled softmax. "
                        f"Received: --{field.name}={value} "
                        "--loss=full_softmax"
                    )
        if self.weight_average and self.table_optimizer in (
            "lazy_adam",
            "rowwise_adagrad",
        ):
            raise InputError(
                "--weight_average must be 0 with "
                f"--table_optimizer={self.table_optimizer}: an average would "
                "go through the whole table at each step. "
                f"Received: {self.weight_average}"
            )

    def _check_temporal_fields(self) -> None:
        if self.split != "temporal":
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if field.name in TEMPORAL_FIELDS and value != field.default:
                    raise InputError(
                        f"--{field.name} must go with --split=temporal. "
                        f"Received: --{field.name}={value} "
                        f"--split={self.split}"
                    )
            return
        begin = parse_cutoff(self.validation_from, "validation_from").share
        end = parse_cutoff(self.test_from, "test_from").share
        if begin is not None and end is not None and begin >= end:
            raise InputError(
                "--validation_from must be below "
                f"--test_from={self.test_from}. "
                f"Received: {self.validation_from}"
            )

    @property
    def excludes_history(self) -> bool:
        """Whether no item of a query's history is a candidate of it.

        Where a user may come back to an item, it is one.
        """
        return self.repeats != "all"

    def with_full_softmax(self) -> TrainConfig:
        """Returns the same with the full softmax, which samples nothing."""
        defaults: dict[str, Any] = {
            field.name: field.default
            for field in dataclasses.fields(self)
            if field.name in SAMPLING_FIELDS
        }
        return dataclasses.replace(self, loss="full_softmax", **defaults)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, as JSON can hold them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str) -> TrainConfig:
        """Makes a configuration from `to_dict`'s answer.

        Args:
            fields: Field values by name.
            source: Where they come from, for the error's text.

        Returns:
            The configuration.

        Raises:
            InputError: A field is unknown, missing, of another type or out
                of range.
        """
        if not isinstance(fields, dict):
            raise InputError(
                f"{source}: expected the fields of a training configuration. "
                f"Received: {type(fields).__name__}"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        for what, names in (
            ("unknown", fields.keys() - known),
            ("missing", known - fields.keys()),
        ):
            if names:
                raise InputError(
                    f"{source}: expected the fields of a training "
                    f"configuration. Received: {what} "
                    f"{', '.join(sorted(names))}"
                )
        try:
            return cls(**fields)
        except (InputError, TypeError) as error:
            raise InputError(f"{source}: {error}") from error


# What NumPy's generators take.
_HIGHEST_SEED = 2**32 - 1
_LOWEST: dict[str, float] = {
    "min_item_count": 1,
    "min_user_count": 1,
    "queries_per_user": 0,
    "embedding_dim": 1,
    "num_blocks": 1,
    "num_heads": 1,
    "dropout": 0,
    "item_dropout": 0,
    "id_dropout": 0,
    "max_history_length": 1,
    "num_negatives": 2,
    "num_epochs": 1,
    "positions_per_batch": 1,
    "learning_rate": 0,
    "warmup_steps": 0,
    "adam_beta_2": 0,
    "weight_decay": 0,
    "weight_average": 0,
    "patience": 1,
    "steps_before": 0,
    "seed": 0,
    "checkpoint_steps": 1,
}

# The values of `--preset`: what differs from the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "movielens-small": {
        "table_init": "co_occurrence",
        "num_blocks": 1,
        "dropout": 0.3,
        "num_epochs": 8,
        "positions_per_batch": 1600,
    },
    "movielens-1m": {
        "data": "tfds:movielens/1m-ratings",
        "table_init": "co_occurrence",
        "embedding_dim": 128,
        "item_dropout": 0.2,
        "num_epochs": 34,
        "learning_rate": 0.002,
        "patience": 10,
    },
}


def make_config(preset: str, overrides: dict[str, Any]) -> TrainConfig:
    """Returns a preset with some fields replaced.

    Args:
        preset: A name in `PRESETS`.
        overrides: Field values by name.

    Returns:
        The configuration.

    Raises:
        InputError: The preset is unknown or a value is out of range.
    """
    if preset not in PRESETS:
        raise InputError(
            f"--preset must be one of {', '.join(PRESETS)}. "
            f"Received: {preset!r}"
        )
    return TrainConfig(**{**PRESETS[preset], **overrides})
