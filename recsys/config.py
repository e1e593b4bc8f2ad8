"""The configuration of a training run: fields, choices and presets.

Each field states in one place what it means, which values it takes and which
part of the program reads it; the checks, the command-line flags and `--help`
are derived from that. Nothing here needs NumPy, Arrow or TensorFlow, so that
`--help` is fast.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
import math
import operator
import pathlib
import types
import typing
from collections.abc import Callable
from typing import Any

from recsys import files
from recsys.errors import InputError

ENCODERS = ("self_attention", "gru", "mean_pooling")
TABLE_INITS = ("random", "co_occurrence")
SPLITS = (
    "leave_last_out",
    "temporal",
    "held_out_users",
    "held_out_items",
    "validation_only",
)
# The splits that treat each user separately, and the maximum number of a user's
# last interactions that they hold out.
HELD_OUT_BY_USER = {"leave_last_out": 2, "validation_only": 1}
# The splits that depend on the seed.
SEEDED_SPLITS = ("held_out_users", "held_out_items")
# Which of several interactions of one user with one item are kept.
REPEATS = ("first", "last", "all")
# What a line of a log in text holds.
LAYOUTS = ("rows", "sequences")
LOSSES = ("auto", "full_softmax", "sampled_softmax")
NEGATIVES = ("in_batch", "uniform", "popularity", "mixed")
PRECISIONS = ("float32", "bfloat16")
STRATEGIES = ("single", "mirrored", "multi_worker")
TABLE_OPTIMIZERS = ("auto", "dense", "lazy_adam", "rowwise_adagrad")


@dataclasses.dataclass(frozen=True)
class FieldInfo:
    """Metadata of a field, besides its name, type and default.

    Attributes:
        group: Heading in `--help`.
        help: Description.
        choices: The allowed values, if they are listed.
        at_least: Lowest allowed value.
        at_most: Highest allowed value.
        below: Exclusive upper bound.
        reads: "source" for fields that locate a log and describe how to read
            it, "data" for fields that filter and split it, "event" for
            fields about kinds of events and dislikes, "temporal" for fields
            that only the temporal split reads (both count as "data" too),
            "feature" for fields that name features of events, times, requests
            and users, "sampling" for fields that only the sampled softmax
            reads; "" for all others.
        is_flag: Whether it can be set on the command line.
    """

    group: str
    help: str
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    reads: str = ""
    is_flag: bool = True


def _field(
    group: str, default: Any, text: str, *, reads: str = "", **limits: Any
) -> Any:
    if choices := limits.get("choices"):
        text = f"{text}: {', '.join(choices)}."
    info = FieldInfo(group, text, reads=reads, **limits)
    return dataclasses.field(default=default, metadata={"info": info})


# By the heading of `--help`, and by what reads the field.
_source = functools.partial(_field, "Data", reads="source")
_data = functools.partial(_field, "Data", reads="data")
_event = functools.partial(_field, "Data", reads="event")
_temporal = functools.partial(_field, "Data", reads="temporal")
_model = functools.partial(_field, "Model")
_feature = functools.partial(_field, "Model", reads="feature")
_loss = functools.partial(_field, "Loss")
_sampling = functools.partial(_field, "Loss", reads="sampling")
_optimization = functools.partial(_field, "Optimization")
_execution = functools.partial(_field, "Execution")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that determines what a training run computes.

    Each field is a flag of `python -m recsys.train`. Two runs with equal
    configurations on equal data end with equal weights.

    Raises:
        InputError: A field is out of range, or would be ignored.
    """

    data: str = _source(
        "movielens-small",
        "The log to read: movielens-small (bundled), a public data set (ml-1m, "
        "amazon-2014/Beauty, …: python -m recsys.datasets lists them), "
        "tfds:movielens/<config>-ratings, "
        "synthetic:users=…,items=…,interactions=…,seed=…, or a path: a "
        "GroupLens folder or zip, a table in text (CSV, TSV, …), JSON lines or "
        "Parquet, a folder of such parts, a URI of those, or the output of "
        "recsys.prepare_shards.",
    )
    user_column: str | None = _source(
        None, "Name of the user id column, if it is an unusual one."
    )
    item_column: str | None = _source(
        None, "Name of the item id column, likewise."
    )
    timestamp_column: str | None = _source(
        None,
        "Name of the time column, likewise; without one, the order of the "
        "file is that of the events.",
    )
    rating_column: str | None = _source(
        None, "Name of the rating column, likewise."
    )
    columns: str | None = _source(
        None,
        "Column names of a text file without a header, with commas between, "
        "such as user,item,rating,timestamp; _ skips a column.",
    )
    separator: str | None = _source(
        None,
        "What stands between two values in text: a character, the same one "
        "several times, or tab, blank or blanks (any number of them). Default: "
        "by the first line.",
    )
    layout: str | None = _source(
        None,
        "What a line of text holds: rows are one event each, sequences a user "
        "and all items, oldest first. Default: rows, unless the lines differ "
        "in length and hold nothing but whole numbers",
        choices=LAYOUTS,
    )
    encoding: str | None = _source(
        None, "Encoding of text, such as latin-1. Default: UTF-8."
    )
    time_format: str | None = _source(
        None,
        "Format of times in text, such as '%d/%m/%Y %H:%M'. Default: numbers, "
        "ISO dates and other usual ones.",
    )
    event_column: str | None = _source(
        None, "Name of the column of kinds of events, likewise."
    )
    items_file: str | None = _source(
        None, "CSV or Parquet file with item titles, genres and other metadata."
    )
    users_file: str | None = _source(
        None,
        "CSV or Parquet file of user metadata, by user id. Default: users.csv "
        "(or .tsv, .parquet) beside the log, or the users of MovieLens.",
    )
    tfds_data_dir: str | None = _source(
        None, "Where TensorFlow Datasets keeps prepared data."
    )
    tfds_manual_dir: str | None = _source(
        None, "Folder with the original archive, used instead of a download."
    )
    datasets_dir: str | None = _source(
        None,
        "Where public data sets are kept. Without it: recsys in "
        "$XDG_CACHE_HOME or ~/.cache.",
    )
    min_rating: float | None = _data(
        None, "Keep only interactions with at least this rating."
    )
    max_rating: float | None = _event(
        None,
        "Interactions with at most this rating are dislikes: never targets or "
        "history, but negatives of their user.",
    )
    events: str | None = _event(
        None,
        "Kinds of events to keep, with their weights in the loss and in the "
        "baselines: view:1,cart:3,purchase:5 (default weight 1).",
    )
    target_events: str | None = _event(
        None,
        "Kinds of events to predict, separated by commas; the others are "
        "history only.",
    )
    dislikes: str | None = _event(
        None, "Kinds of events that are dislikes, separated by commas."
    )
    min_item_count: int = _data(
        1, "Drop items with fewer interactions than this.", at_least=1
    )
    min_user_count: int = _data(
        1, "Drop users with fewer interactions than this.", at_least=1
    )
    repeats: str = _data(
        "first",
        "Which interactions of the same user and item to keep",
        choices=REPEATS,
    )
    split: str = _data("leave_last_out", "What to hold out", choices=SPLITS)
    validation_from: str = _temporal(
        "0.8",
        "Temporal split: where the validation queries start and the training "
        "set ends, as a share of the interactions between 0 and 1, an ISO date "
        "such as 2015-06-30, or a time in the log's unit.",
    )
    test_from: str = _temporal(
        "0.9", "Temporal split: where the test queries start, likewise."
    )
    queries_per_user: int = _temporal(
        0,
        "Temporal split: at most this many queries per user in validation and "
        "in test, the earliest ones; 0 for all.",
        at_least=0,
    )

    encoder: str = _model(
        "self_attention", "The encoder of histories", choices=ENCODERS
    )
    embedding_dim: int = _model(
        64, "Length of the learned vectors.", at_least=1
    )
    num_blocks: int = _model(
        2, "Blocks of the self-attention encoder.", at_least=1
    )
    num_heads: int = _model(
        1, "Attention heads per block; must divide embedding_dim.", at_least=1
    )
    dropout: float = _model(
        0.2, "Share of activations to drop.", at_least=0, below=1
    )
    item_dropout: float = _model(
        0.0,
        "Share of history items to hide from the encoder in training.",
        at_least=0,
        below=1,
    )
    table_init: str = _model(
        "random", "How to initialize the item table", choices=TABLE_INITS
    )
    transition_dim: int = _model(
        0,
        "Dimensions of a sketch of which items follow which, beside "
        "embedding_dim and not trained; 0 for none.",
        at_least=0,
    )
    transition_weight: float = _model(
        8.0, "Weight of that sketch in a score.", at_least=0
    )
    item_features: str | None = _model(
        None,
        "Columns of the items file to use as item features, so that new items "
        "can be recommended: auto (genres, year, title words), or names "
        "separated by commas, each optionally with a kind: name:KIND, where "
        "KIND is categorical, multi, words, numeric or vector; or "
        "name:multi:SEPARATOR.",
    )
    event_features: str | None = _feature(
        None,
        "Features of each event of a history, added to its item: rating, "
        "event, or other columns of the log, named as for item_features.",
    )
    time_features: str | None = _feature(
        None,
        "Features of the times of a history, separated by commas: gap (since "
        "the previous event), hour, weekday and month (in UTC) of each event, "
        "and age: attention by the time between two events.",
    )
    context_features: str | None = _feature(
        None,
        "Features of the request: gap (since the last event), hour, weekday, "
        "month, or columns of the log, which training reads from the row of "
        "the target.",
    )
    user_features: str | None = _feature(
        None,
        "Columns of the users file to use as user features: auto for all, or "
        "names, as for item_features. Users without events are recommended "
        "items by them.",
    )
    feature_dropout: float = _model(
        0.1,
        "With event, time, context or user features: share of the histories "
        "in training from which each of them is hidden.",
        at_least=0,
        below=1,
    )
    id_dropout: float | None = _model(
        None,
        "With item_features: train these as a layer of the model and hide this "
        "share of the ids. Default: features predict the rows of new items.",
        at_least=0,
        below=1,
    )
    max_history_length: int = _model(
        200, "Longest history to encode, in items.", at_least=1
    )

    loss: str = _loss(
        "auto",
        "The loss; auto is full_softmax for small catalogs and sampled_softmax "
        "for large ones",
        choices=LOSSES,
    )
    mask_known_items: bool = _loss(
        False,
        "Leave the items of a history out of the softmax of its targets, as "
        "they are left out of its recommendations.",
    )
    negatives: str = _sampling(
        "mixed", "Where sampled negatives come from", choices=NEGATIVES
    )
    num_negatives: int = _sampling(1024, "Negatives per position.", at_least=2)
    negatives_per_row: bool = _sampling(
        False, "Sample separate negatives for each row of a batch."
    )
    logq_correction: bool = _sampling(
        True, "Correct for the sampling probability of each negative."
    )

    num_epochs: int = _optimization(30, "Maximum number of epochs.", at_least=1)
    positions_per_batch: int = _optimization(
        4_000, "Approximate positions per batch.", at_least=1
    )
    learning_rate: float = _optimization(
        0.003,
        "Peak learning rate, after warm-up; it then decays to 0 as a cosine.",
        at_least=0,
    )
    warmup_steps: int = _optimization(
        300, "Steps of linear warm-up.", at_least=0
    )
    adam_beta_2: float = _optimization(
        0.98, "Adam's decay rate of the second moment.", at_least=0, below=1
    )
    weight_decay: float = _optimization(
        0.0, "Decoupled weight decay.", at_least=0
    )
    table_optimizer: str = _optimization(
        "auto",
        "How to update the item table; all but dense touch only rows with a "
        "gradient, and auto is lazy_adam with the sampled softmax and dense "
        "with the full one",
        choices=TABLE_OPTIMIZERS,
    )
    selection_metric: str = _optimization(
        "ndcg@10",
        "Validation metric that selects the best epoch and stops the run "
        "early, such as ndcg@10, recall@20 or mrr@10.",
    )
    patience: int = _optimization(
        5,
        "Stop after this many epochs without a better selection_metric.",
        at_least=1,
    )
    # Warm-up and decay start after these steps, as Adam's bias correction does.
    steps_before: int = _optimization(
        0,
        "Optimizer steps of the run that this one extends.",
        at_least=0,
        is_flag=False,
    )
    chosen: str = _optimization(
        "",
        "Fields, with commas between, that are still to be chosen by the log: "
        "what --preset=auto sets and no flag does.",
        is_flag=False,
    )
    seed: int = _optimization(
        0,
        "Random seed; the same seed gives the same weights.",
        at_least=0,
        at_most=2**32 - 1,
    )

    strategy: str = _execution(
        "single",
        "Devices to train on: one process with one device, one process with "
        "all of its GPUs, or the processes named by the environment variable "
        "TF_CONFIG (docs/distributed.md)",
        choices=STRATEGIES,
    )
    trust_network: bool = _execution(
        False,
        "With strategy=multi_worker: accept addresses that are neither "
        "loopback nor private. TensorFlow's ports have no authentication, "
        "and whoever reaches them can act as this user.",
    )
    jit_compile: bool = _execution(
        False,
        "Compile the training step with XLA: faster on a GPU, slower on a CPU.",
    )
    precision: str = _execution(
        "float32",
        "Floating-point format of the towers while they are trained; weights, "
        "losses and the saved model are float32 either way",
        choices=PRECISIONS,
    )
    checkpoint_steps: int = _execution(
        500,
        "Steps between checkpoints; every epoch also ends with one.",
        at_least=1,
    )

    def __post_init__(self) -> None:
        for name, info in FIELDS.items():
            _check_value(name, getattr(self, name), info)
        if self.encoder == "self_attention" and (
            self.embedding_dim % self.num_heads
        ):
            raise InputError(
                f"--num_heads must divide --embedding_dim="
                f"{self.embedding_dim}. Received: {self.num_heads}"
            )
        if self.split != "temporal":
            self._check_not_given(
                TEMPORAL_FIELDS, "--split=temporal", f"--split={self.split}"
            )
        else:
            self._check_cutoffs()
        if self.loss == "full_softmax":
            self._check_not_given(
                SAMPLING_FIELDS,
                "the sampled softmax",
                "--loss=full_softmax",
            )
        check_events(self)
        check_features(self)
        if not self.transition_dim and "transition_dim" not in self.chosen:
            self._check_not_given(
                ("transition_weight",), "--transition_dim", "--transition_dim=0"
            )
        if self.jit_compile and self.strategy != "single":
            raise InputError(
                "--jit_compile must be false with "
                f"--strategy={self.strategy}. Received: true"
            )

    def _check_not_given(
        self, names: tuple[str, ...], with_what: str, received: str
    ) -> None:
        """Raises InputError for a given field that would be ignored."""
        for name in names:
            value = getattr(self, name)
            if value != DEFAULTS[name]:
                raise InputError(
                    f"--{name} must go with {with_what}. "
                    f"Received: --{name}={value} {received}"
                )

    def _check_cutoffs(self) -> None:
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
        """Whether the items of a query's history are not candidates for it.

        With `repeats="all"`, users may return to an item, and with several
        kinds of events, by an event of another kind.
        """
        one_kind = not self.target_events and len(parse_events(self.events)) < 2
        return self.repeats != "all" and one_kind

    def source(self) -> dict[str, Any]:
        """Returns the fields that locate and describe the log."""
        return {name: getattr(self, name) for name in SOURCE_FIELDS}

    def with_chosen(self, values: dict[str, Any]) -> TrainConfig:
        """Returns a copy in which no field is left to be chosen.

        Args:
            values: Field values by name, of at least the fields in `chosen`.
        """
        names = [name for name in self.chosen.split(",") if name]
        return dataclasses.replace(
            self, chosen="", **{name: values[name] for name in names}
        )

    def data_differences(self, other: TrainConfig) -> dict[str, Any]:
        """Returns the other's fields that change its data or its split.

        Args:
            other: The configuration of another run.
        """
        names = [*DATA_FIELDS]
        if self.split in SEEDED_SPLITS:
            names.append("seed")
        return {
            name: getattr(other, name)
            for name in names
            if getattr(other, name) != getattr(self, name)
        }

    def with_full_softmax(self) -> TrainConfig:
        """Returns a copy with the full softmax and default sampling fields."""
        defaults = {name: DEFAULTS[name] for name in SAMPLING_FIELDS}
        return dataclasses.replace(self, loss="full_softmax", **defaults)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields by name, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Any, source: str) -> TrainConfig:
        """Creates a configuration from the value that `to_dict` returned.

        Missing fields, as from an earlier version, take their defaults.

        Args:
            fields: Field values by name.
            source: Where they come from, for error messages.

        Returns:
            The configuration.

        Raises:
            InputError: A field is unknown, of another type or out of range.
        """
        if not isinstance(fields, dict):
            raise InputError(
                f"{source}: expected the fields of a training configuration. "
                f"Received: {type(fields).__name__}"
            )
        known = {
            name: value
            for name, value in fields.items()
            if name not in _REMOVED or value != _REMOVED[name]
        }
        if not known.get("item_features"):
            # It had a default, without effect, in earlier versions.
            known.pop("id_dropout", None)
        if unknown := known.keys() - FIELDS.keys():
            raise InputError(
                f"{source}: expected the fields of a training configuration. "
                f"Received: unknown {', '.join(sorted(unknown))}"
            )
        try:
            return cls(**known)
        except InputError as error:
            raise InputError(f"{source}: {error}") from error


# Removed fields of earlier versions, each with the value that had no effect.
_REMOVED = {"weight_average": 0.0}

FIELDS: dict[str, FieldInfo] = {
    field.name: field.metadata["info"]
    for field in dataclasses.fields(TrainConfig)
}
DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(TrainConfig)
}


def _fields_that_read(*what: str) -> tuple[str, ...]:
    return tuple(n for n, info in FIELDS.items() if info.reads in what)


SOURCE_FIELDS = _fields_that_read("source")
FEATURE_FIELDS = _fields_that_read("feature")
# Features that come from the time of an event or of a request.
CLOCK_FEATURES = ("gap", "hour", "weekday", "month")
# Known only once an event has happened.
OUTCOMES = ("rating", "event")
SAMPLING_FIELDS = _fields_that_read("sampling")
TEMPORAL_FIELDS = _fields_that_read("temporal")
EVENT_FIELDS = _fields_that_read("event")
# All fields that determine the data and the split, besides the seed.
DATA_FIELDS = _fields_that_read("source", "data", "event", "temporal")


def _types() -> dict[str, tuple[type, bool]]:
    """Returns each field's type without None, and whether it may be None."""
    found = {}
    for name, annotation in typing.get_type_hints(TrainConfig).items():
        optional = isinstance(annotation, types.UnionType)
        members = typing.get_args(annotation) if optional else [annotation]
        [kind] = [each for each in members if each is not types.NoneType]
        found[name] = (kind, optional)
    return found


TYPES = _types()


def _check_value(name: str, value: Any, info: FieldInfo) -> None:
    """Raises InputError unless a value has its field's type and range."""
    kind, optional = TYPES[name]
    if value is None and optional:
        return
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or (
        isinstance(value, bool) and kind is not bool
    ):
        raise InputError(
            f"--{name} must be of type {kind.__name__}. Received: {value!r}"
        )
    if info.choices and value not in info.choices:
        raise InputError(
            f"--{name} must be one of {', '.join(info.choices)}. "
            f"Received: {value!r}"
        )
    limits: tuple[tuple[Any, str, Callable[..., bool]], ...] = (
        (info.at_least, "at least", operator.ge),
        (info.at_most, "at most", operator.le),
        (info.below, "below", operator.lt),
    )
    for limit, words, is_kept in limits:
        if limit is not None and not is_kept(value, limit):
            raise InputError(
                f"--{name} must be {words} {limit}. Received: {value}"
            )
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"--{name} must be finite. Received: {value}")


def parse_names(text: str | None) -> tuple[str, ...]:
    """Returns names that commas separate; none for None."""
    names = (name.strip() for name in (text or "").split(","))
    return tuple(name for name in names if name)


def parse_events(text: str | None) -> dict[str, float]:
    """Returns the weight of each kind of event in `--events`.

    Args:
        text: Such as "view:1,cart:3,purchase"; a kind without a weight has 1.

    Raises:
        InputError: A kind is named twice, or a weight is not within 1e-9 and
            1e9, which float32 can sum.
    """
    weights: dict[str, float] = {}
    for part in parse_names(text):
        name, colon, number = part.rpartition(":")
        try:
            weight = float(number) if colon else 1.0
        except ValueError:
            weight = math.nan
        name = (name if colon else part).strip()
        if not name or name in weights or not 1e-9 <= weight <= 1e9:
            raise InputError(
                "--events must name each kind of event once, with a positive "
                "weight (1e-9 to 1e9), such as view:1,purchase:5. Received: "
                f"{part!r} in {text!r}"
            )
        weights[name] = weight
    return weights


def check_events(fields: Any) -> None:
    """Raises InputError for fields of `EVENT_FIELDS` that contradict."""
    kept = parse_events(fields.events)
    targets, dislikes = map(
        parse_names, (fields.target_events, fields.dislikes)
    )
    for name in EVENT_FIELDS[1:]:
        text = getattr(fields, name)
        if text is not None and not parse_names(text):
            raise InputError(
                f"--{name} must name kinds of events. Received: {text!r}"
            )
    for name in targets:
        if kept and name not in kept:
            raise InputError(
                "--target_events must be among --events="
                f"{fields.events}. Received: {name}"
            )
    for name in dislikes:
        if name in kept or name in targets:
            raise InputError(
                "--dislikes must not be among --events or --target_events. "
                f"Received: {name}"
            )
    low, high = fields.min_rating, fields.max_rating
    if low is not None and high is not None and high >= low:
        raise InputError(
            f"--max_rating must be below --min_rating={low}. Received: {high}"
        )


def check_features(config: TrainConfig) -> None:
    """Raises InputError for fields of `FEATURE_FIELDS` that cannot be used."""
    for name in FEATURE_FIELDS:
        text = getattr(config, name)
        if text is not None and not parse_names(text):
            raise InputError(f"--{name} must name features. Received: {text!r}")
    times = parse_names(config.time_features)
    known = (*CLOCK_FEATURES, "age")
    if wrong := [n for n in times if n not in known]:
        raise InputError(
            f"--time_features must be among {', '.join(known)}. Received: "
            f"{wrong[0]}"
        )
    if "age" in times and config.encoder != "self_attention":
        raise InputError(
            "--time_features=age must go with --encoder=self_attention, whose "
            f"attention it changes. Received: --encoder={config.encoder}"
        )
    for name in bare_names(config.context_features):
        if name in (*OUTCOMES, "age"):
            raise InputError(
                "--context_features must be known when a recommendation is "
                "asked for, which a rating, a kind of event or an age is not. "
                f"Received: {name}"
            )
    if "event" in read_names(config) and not (
        config.events or config.target_events
    ):
        raise InputError(
            "--event_features=event needs the kinds of events by name: "
            "--events=view,purchase or --target_events. Received: neither"
        )
    if config.users_file is not None and config.user_features is None:
        raise InputError(
            "--users_file must go with --user_features. Received: --users_file="
            f"{config.users_file} alone"
        )


def read_names(fields: Any) -> tuple[str, ...]:
    """Returns the names, without kinds, of event and context features.

    Args:
        fields: A configuration, or other rules with those of its fields.
    """
    texts = (fields.event_features, fields.context_features)
    return tuple(dict.fromkeys(n for text in texts for n in bare_names(text)))


def bare_names(text: str | None) -> tuple[str, ...]:
    """Returns the names in the value of a feature flag, without kinds."""
    return tuple(part.partition(":")[0] for part in parse_names(text))


def other_columns(fields: Any) -> tuple[str, ...]:
    """Returns the further columns of the log that features need.

    Args:
        fields: As for `read_names`.
    """
    special = (*OUTCOMES, *CLOCK_FEATURES)
    return tuple(n for n in read_names(fields) if n not in special)


@dataclasses.dataclass(frozen=True)
class Cutoff:
    """A point in time or a share of the interactions; the other is None.

    Attributes:
        share: Share of the interactions before the cutoff, between 0 and 1.
        seconds: Seconds since 1970, or a number in the log's unit if its
            times are not dates.
        is_date: Whether the cutoff was given as a date.
    """

    share: float | None = None
    seconds: decimal.Decimal | None = None
    is_date: bool = False


def parse_cutoff(text: str, name: str) -> Cutoff:
    """Parses a cutoff of the temporal split.

    Args:
        text: A number strictly between 0 and 1 is a share, any other number
            a time in the log's own unit; anything else an ISO date (its
            midnight) or datetime, in UTC unless it names a time zone.
        name: The flag that it comes from, for error messages.

    Returns:
        The cutoff.

    Raises:
        InputError: The text is none of these.
    """
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        try:
            return Cutoff(seconds=iso_seconds(text), is_date=True)
        except ValueError as error:
            raise _error(text, name) from error
    if not number.is_finite() or number.copy_abs() >= 2**63:
        raise _error(text, name)
    if 0 < number < 1:
        if not 0 < float(number) < 1:
            raise _error(text, name)  # Too close to 0 or 1 for a float.
        return Cutoff(share=float(number))
    return Cutoff(seconds=number)


def iso_seconds(text: str) -> decimal.Decimal:
    """Returns the exact seconds between 1970 and an ISO date.

    Args:
        text: The date or time; in UTC unless it names a time zone.

    Raises:
        ValueError: It is none.
    """
    moment = datetime.datetime.fromisoformat(text.strip())
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


# The values of `--preset`: differences from the defaults above.
PRESETS: dict[str, dict[str, Any]] = {
    "movielens-small": {
        "table_init": "co_occurrence",
        "num_blocks": 1,
        "dropout": 0.3,
        "item_dropout": 0.3,
        "transition_dim": 256,
        "transition_weight": 16.0,
        "num_epochs": 16,
        "positions_per_batch": 1600,
    },
    "movielens-1m": {
        "data": "tfds:movielens/1m-ratings",
        "table_init": "co_occurrence",
        "embedding_dim": 128,
        "num_blocks": 4,
        "item_dropout": 0.2,
        "mask_known_items": True,
        "num_epochs": 34,
        "learning_rate": 0.002,
        "patience": 10,
    },
}


_TRANSITION_DIM = 256
_TRANSITION_FIELDS = ("transition_dim", "transition_weight")
# Decide whether known items are recommended again.
_REPEATING = ("repeats", "events", "target_events")
# The preset that looks at the log; see `auto_fields`.
AUTO = "auto"
_LONG_HISTORY = 80
_MANY_PER_ITEM = 100
# Interactions to train on in all, over all epochs: a quarter of an hour with
# small catalogs, on two cores.
_MOST_INTERACTIONS = 4e7
# What the full softmax may take in all: ten minutes for 300,000 interactions
# and longer for more, at 80 billion operations a second, six for each item,
# dimension and interaction.
_MOST_OPERATIONS = 600 * 80e9
_MOST_PER_INTERACTION = _MOST_OPERATIONS / 300_000
_FEWEST_FULL_EPOCHS = 12
# Among the targets of a batch are the items that the same history has later:
# in-batch negatives would push them down.
_AUTO_NEGATIVES = "popularity"
# Of a larger table, a sketch of the transitions takes hundreds of megabytes,
# and Adam on all rows takes longer than the rest of a step.
_LARGEST_DENSE_TABLE = 100_000


def default_preset(data: str | None) -> str:
    """Returns the preset of a run that names none.

    Args:
        data: The log; None for the bundled one.
    """
    is_bundled = data in (None, DEFAULTS["data"])
    return "movielens-small" if is_bundled else AUTO


def auto_fields(
    num_users: int,
    num_items: int,
    num_interactions: int,
    loss: str = "auto",
    excludes_history: bool = True,
    has_item_features: bool = False,
) -> tuple[dict[str, Any], str]:
    """Chooses the fields that `--preset=auto` sets.

    docs/tuning.md has the measurements behind the rules.

    Args:
        num_users: Users with training interactions.
        num_items: Items.
        num_interactions: Training interactions.
        loss: The loss that was given, one of `LOSSES`.
        excludes_history: As `TrainConfig.excludes_history`.
        has_item_features: Whether new items are to be recommended.

    Returns:
        Field values by name, and the reasons in a line.
    """
    per_user = num_interactions / max(1, num_users)
    per_item = num_interactions / max(1, num_items)
    fields: dict[str, Any] = {
        "table_init": "co_occurrence",
        "num_blocks": DEFAULTS["num_blocks"],
        "dropout": DEFAULTS["dropout"],
        "item_dropout": DEFAULTS["item_dropout"],
        "mask_known_items": False,
        "transition_dim": _TRANSITION_DIM,
        "num_epochs": DEFAULTS["num_epochs"],
        "learning_rate": DEFAULTS["learning_rate"],
        "patience": DEFAULTS["patience"],
    }
    if per_user < _LONG_HISTORY:
        why = "short histories"
        fields["dropout"] = 0.5
    elif per_item < _MANY_PER_ITEM:
        why = "long histories"
        fields |= {"dropout": 0.3, "item_dropout": 0.3}
        fields |= {"num_epochs": 40, "patience": 10}
    else:
        why = "long, dense histories"
        preset = PRESETS["movielens-1m"]
        fields["transition_dim"] = 0
        fields |= {n: preset[n] for n in fields if n in preset}
    if num_items > _LARGEST_DENSE_TABLE:
        fields["transition_dim"] = 0
    for name in _unsuitable(excludes_history, has_item_features):
        if name in fields:
            fields[name] = DEFAULTS[name]
    why += f" ({per_user:,.0f} interactions per user, {per_item:,.0f} per item)"
    fields |= _loss_fields(num_items, num_interactions, loss)
    fields["num_epochs"] = min(fields["num_epochs"], fields.pop("most_epochs"))
    if loss == "auto" and fields["loss"] == "sampled_softmax":
        why += f", too many for the full softmax ({num_items:,} items)"
    return fields, why


def _loss_fields(
    num_items: int, num_interactions: int, loss: str
) -> dict[str, Any]:
    """Chooses the loss by its cost; `most_epochs` is how many that allows."""
    most = max(5, int(_MOST_INTERACTIONS / max(1, num_interactions)))
    budget = max(_MOST_OPERATIONS, _MOST_PER_INTERACTION * num_interactions)
    fields = {
        "loss": "full_softmax" if loss == "auto" else loss,
        "negatives": DEFAULTS["negatives"],
        "num_negatives": DEFAULTS["num_negatives"],
        "table_optimizer": "auto",
    }
    if loss == "sampled_softmax":
        fields["negatives"] = _AUTO_NEGATIVES
    for dim in (128, 64):
        epoch = 6 * num_items * dim * num_interactions
        if _FEWEST_FULL_EPOCHS * epoch <= budget:
            epochs = min(most, int(budget / max(1, epoch)))
            return {**fields, "embedding_dim": dim, "most_epochs": epochs}
    if loss == "full_softmax":
        return {**fields, "embedding_dim": 64, "most_epochs": most}
    is_small = num_items <= _LARGEST_DENSE_TABLE
    return {
        "embedding_dim": 64,
        "loss": "sampled_softmax",
        "negatives": _AUTO_NEGATIVES,
        "num_negatives": 4096,
        "table_optimizer": "dense" if is_small else "lazy_adam",
        "most_epochs": most,
    }


def _unsuitable(
    excludes_history: bool, has_item_features: bool
) -> tuple[str, ...]:
    """Returns the fields that are to have their defaults."""
    names: tuple[str, ...] = ()
    if not excludes_history:
        names += ("mask_known_items",)
    # With transitions, items that nothing has followed yet would come last.
    if has_item_features or not excludes_history:
        names += _TRANSITION_FIELDS
    return names


def _suitable(
    fields: dict[str, Any], overrides: dict[str, Any]
) -> dict[str, Any]:
    """Returns a preset's fields, as far as they suit what is given."""
    given = {n: overrides[n] for n in _REPEATING if n in overrides}
    left_out = {
        *_unsuitable(
            TrainConfig(**given).excludes_history,
            bool(overrides.get("item_features")),
        )
    }
    if "transition_dim" in overrides:  # The weight goes with it.
        left_out -= {*_TRANSITION_FIELDS}
        if not overrides["transition_dim"]:
            left_out |= {*_TRANSITION_FIELDS}
    return {n: value for n, value in fields.items() if n not in left_out}


def make_config(preset: str | None, overrides: dict[str, Any]) -> TrainConfig:
    """Returns a preset with some fields replaced.

    Args:
        preset: A name in `PRESETS`; "auto": `recsys.training.train` chooses
            the fields that are not given, once it has read the log; or the
            path of a JSON file with fields of `TrainConfig` by name, as
            `recsys.tune` writes it. Default: "movielens-small" for the
            bundled data, else "auto".
        overrides: Field values by name. A preset's transitions are left out
            with item features, for they would rank new items last, and, like
            its `mask_known_items`, with repeats or several kinds of events.

    Returns:
        The configuration.

    Raises:
        InputError: The preset is unknown or a value is out of range.
    """
    if preset is None:
        preset = default_preset(overrides.get("data"))
    if preset == AUTO:
        names = [n for n in auto_fields(1, 1, 1)[0] if n not in overrides]
        config = TrainConfig(chosen=",".join(names), **overrides)
        return _without_contradiction(config)
    if preset in PRESETS:
        fields = _suitable(PRESETS[preset], overrides)
        return _without_contradiction(TrainConfig(**{**fields, **overrides}))
    path = pathlib.Path(preset)
    if not path.is_file():
        raise InputError(
            f"--preset must be {AUTO}, one of {', '.join(PRESETS)}, or a JSON "
            f"file as recsys.tune writes it. Received: {preset!r}"
        )
    base = TrainConfig.from_dict(files.read_json(path), preset)
    fields = _suitable(base.to_dict(), overrides)
    return _without_contradiction(TrainConfig(**{**fields, **overrides}))


def _without_contradiction(config: TrainConfig) -> TrainConfig:
    """Returns it unless it masks what it recommends; old runs may do so."""
    if config.mask_known_items and not config.excludes_history:
        raise InputError(
            "--mask_known_items must be false where a history's items may be "
            "recommended again (--repeats=all, several --events or "
            "--target_events). Received: true"
        )
    return config
