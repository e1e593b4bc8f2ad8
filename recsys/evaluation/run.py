"""One run of `python -m recsys.evaluate`, from a workdir to metrics.json."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys import files
from recsys.command_line import FIELD_HELP
from recsys.config import SOURCE_FIELDS, SPLITS, TEMPORAL_FIELDS, TrainConfig
from recsys.data.interactions import Log
from recsys.data.prepare import (
    TRAIN_COUNT,
    PreparedData,
    build_data,
    prepare_log,
    read_log,
    same_training_items,
)
from recsys.data.shards import is_sharded
from recsys.data.splits import Queries, Split
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError
from recsys.evaluation import (
    Comparison,
    Evaluation,
    Health,
    Recommender,
    Slice,
    audit,
    by_history_length,
    by_item_popularity,
    compare,
    describe_lists,
    evaluate,
    genre_matrix,
    health,
    intervals,
    list_summary,
    read_rankings,
    write_rankings,
)
from recsys.evaluation.comparison import (
    DEFAULT_BASELINES,
    Results,
    asked_queries,
    check_baselines,
    compare_with_baselines,
    write_metrics,
)
from recsys.evaluation.results import aligned
from recsys.files import can_write
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.metrics import parse_metric
from recsys.report.data import ReportData, check_packages
from recsys.workdir import Workdir

if TYPE_CHECKING:
    from recsys.recommender import Recommender as TwoTowerRecommender

_METRICS = ("recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """What a stored model is asked.

    Attributes:
        data: The log, its items and its split.
        notes: What the reader of the results has to know.
    """

    data: PreparedData
    notes: list[str]


def evaluation_data(
    config: TrainConfig,
    vocabulary: Vocabulary,
    fields: dict[str, Any],
    protocol: str | None,
) -> EvaluationData:
    """Reads what a model is evaluated on, and checks that it may be.

    On the data that the model was trained on, a split other than the model's
    own must not ask for anything that was in its training set; the baselines
    are then fitted to that training set as well.

    Args:
        config: The model's configuration.
        vocabulary: The model's items.
        fields: Fields of the configuration that name another log or other
            cutoffs of the temporal split; empty for the model's own.
        protocol: Another protocol than the model's own, or None.

    Returns:
        The data.

    Raises:
        InputError: The log cannot be read, a field would be ignored, or the
            split leaks.
    """
    cutoffs = {n: v for n, v in fields.items() if n in TEMPORAL_FIELDS}
    source = {n: v for n, v in fields.items() if n not in cutoffs}
    if source:
        config = _at_other_source(config, source)
    asked = _asked_config(config, protocol, cutoffs)
    notes: list[str] = []
    own: PreparedData | None
    if is_sharded(config.data):
        # Shards of another split than the model's are an error here.
        data = own = build_data(asked)
        notes += _drawn_queries(data)
    else:
        log = read_log(config)
        data = prepare_log(log, asked)
        own = data if asked == config else _own_data(log, config)
    if own is None or not same_training_items(own.vocabulary, vocabulary):
        notes.append(
            "The data are not those that the model was trained on: whether "
            "it has seen what is asked here cannot be checked. The baselines "
            "are fitted to the training part of these data."
        )
        notes += _unknown_items(data, vocabulary)
    elif asked != config:
        flags = {} if protocol is None else {"protocol": protocol}
        _check_leaks(data.split, own.split, _as_flags({**flags, **cutoffs}))
        notes += _notes_on_choice(data.split, own.split)
        split = dataclasses.replace(data.split, train=own.split.train)
        data = dataclasses.replace(data, split=split)
    return EvaluationData(data, notes)


class OtherCatalogue:
    """A recommender that is asked about the items of another log.

    Items are matched by raw id. What the recommender does not know is the
    unknown item in a history, and comes last among the candidates.

    Args:
        recommender: The recommender.
        vocabulary: Its items.
        other: The items of the other log.
    """

    def __init__(
        self,
        recommender: Recommender,
        vocabulary: Vocabulary,
        other: Vocabulary,
    ) -> None:
        self.name = recommender.name
        self._recommender = recommender
        self._indices = vocabulary.indices_of(other)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Scores the items of the other log.

        Args:
            items: `[total]` int32 indices in the other log's vocabulary.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, size of the other vocabulary]` float32, -inf for
            items that the recommender does not know.
        """
        scores = self._recommender.scores(self._indices[items], offsets)
        scores = scores[:, self._indices]
        scores[:, self._indices == UNKNOWN_INDEX] = -np.inf
        return scores


def _drawn_queries(data: PreparedData) -> list[str]:
    """Says how many users of shards are asked, where it is not all."""
    num_asked = data.split.validation.sequences.num_users
    num_users = data.split.train.num_users
    if num_asked + data.num_single >= num_users:
        return []
    return [
        f"{num_asked:,} of {num_users:,} users are asked, drawn by a hash of "
        "their ids when the shards were prepared."
    ]


def _at_other_source(
    config: TrainConfig, source: dict[str, Any]
) -> TrainConfig:
    """Names another log: its columns are looked for anew, filters stay."""
    fresh: dict[str, Any] = {}
    if source.get("data", config.data) != config.data:
        fresh = dict.fromkeys(SOURCE_FIELDS)
    return dataclasses.replace(config, **{**fresh, **source})


def _asked_config(
    config: TrainConfig, protocol: str | None, cutoffs: dict[str, Any]
) -> TrainConfig:
    """Names another split; one of another kind has its own cutoffs."""
    split = protocol or config.split
    if cutoffs and split != "temporal":
        raise InputError(
            f"--{next(iter(cutoffs))} must go with --protocol=temporal. "
            f"Received: {_as_flags(cutoffs)} with the protocol {split}"
        )
    if split != config.split:
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(config)
            if field.name in TEMPORAL_FIELDS
        }
        cutoffs = {**defaults, **cutoffs}
    return dataclasses.replace(config, split=split, **cutoffs)


def _own_data(log: Log, config: TrainConfig) -> PreparedData | None:
    """Splits a log as in training; None where that one cannot be this log."""
    try:
        return prepare_log(log, config)
    except InputError:
        return None


def _as_flags(values: dict[str, Any]) -> str:
    return " ".join(f"--{name}={value}" for name, value in values.items())


def _check_leaks(split: Split, own: Split, flags: str) -> None:
    """Raises InputError when a split asks for what a model was trained on."""
    # The audit of the new queries against the model's own training set.
    queries, _ = asked_queries(split)
    checks = audit(Split(split.protocol, own.train, queries, None)).checks
    leaks = [check for check in checks if check.num_violations]
    if leaks:
        as_in_training = flags.replace("--protocol=", "--split=")
        raise InputError(
            f"{flags} asks for what the model was trained on with "
            f"--split={own.protocol} ({leaks[0].num_violations:,} of "
            f"{leaks[0].num_checked:,} {leaks[0].unit}); train with "
            f"{as_in_training} into another workdir, or evaluate with the "
            f"model's own. Received: {flags}"
        )


def _notes_on_choice(split: Split, own: Split) -> list[str]:
    """Says how many queries the model was chosen by."""
    queries, _ = asked_queries(split)
    num_chosen_by = _num_in_common(queries, own.validation)
    if not num_chosen_by:
        return []
    return [
        f"The model was chosen by {num_chosen_by:,} of these "
        f"{len(queries):,} queries (they validated its training): the "
        "results look better than they are."
    ]


def _num_in_common(queries: Queries, others: Queries) -> int:
    """Counts queries whose first target is a target of the others.

    Both are of the same log, its users and items in the same order, but not
    all splits keep all of its interactions.
    """

    def keys(queries: Queries) -> set[tuple[int, int, int]]:
        asked = queries.history_ends
        columns = (
            queries.users,
            queries.sequences.items[asked],
            queries.sequences.timestamps[asked],
        )
        return set(zip(*(column.tolist() for column in columns), strict=True))

    return len(keys(queries) & keys(others))


def _unknown_items(data: PreparedData, vocabulary: Vocabulary) -> list[str]:
    """Says how much of a log the model does not know."""
    unknown = vocabulary.indices_of(data.vocabulary) == UNKNOWN_INDEX
    num_unknown = int(np.count_nonzero(unknown[FIRST_ITEM_INDEX:]))
    if not num_unknown:
        return []
    queries, _ = asked_queries(data.split)
    targets, _ = queries.targets(np.arange(len(queries)))
    return [
        f"{num_unknown:,} of {data.vocabulary.num_items:,} items are unknown "
        "to the model, which puts them last; "
        f"{int(np.count_nonzero(unknown[targets])):,} of {len(targets):,} "
        "relevant items are among them."
    ]


def check_report(report: str) -> None:
    """Checks that a report can be drawn, and written into its folder.

    Args:
        report: The folder; it need not exist yet.

    Raises:
        InputError: One of the two cannot be.
    """
    check_packages()
    if not report or not can_write(pathlib.Path(report)):
        raise InputError(
            "--report must be a folder that can be written. "
            f"Received: {report!r}"
        )


def write_report(run: EvaluationRun, folder: pathlib.Path) -> pathlib.Path:
    """Writes the page of HTML.

    Args:
        run: A run that has its results.
        folder: Where the page goes; made if missing.

    Returns:
        The page.

    Raises:
        OSError: It cannot be written.
    """
    # The page needs an extra, and reading checkpoints loads TensorFlow.
    from recsys.report.page import render_page
    from recsys.training.checkpoints import read_history

    results = run.finished()
    queries, part = asked_queries(run.data.split)
    history, best_epoch = read_history(run.folder)
    data = ReportData(
        model=results.model,
        others=[*results.baselines.values(), *results.others],
        queries=queries,
        part=part,
        vocabulary=run.data.vocabulary,
        item_counts=run.item_counts(),
        num_users=int(np.count_nonzero(run.data.split.train.lengths)),
        data_name=run.data.name,
        health=run.health,
        list_metrics=run.list_metrics,
        item_vectors=run.item_vectors,
        history=history,
        best_epoch=best_epoch,
        notes=[*run.notes, *results.tuning_notes()],
        skipped=results.skipped,
        rival=None if run.rival is None else str(run.rival),
        comparison=run.comparison,
    )
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    with files.atomic_path(page) as path:
        path.write_text(render_page(data), "utf-8")
    return page


@dataclasses.dataclass
class EvaluationRun:
    """A stored model and what it is asked, then its results.

    Attributes:
        folder: The workdir.
        config: The configuration that the model was trained with.
        vocabulary: The model's items.
        data: The log and its split.
        notes: What the reader of the results has to know.
        baselines: Which.
        rival: A workdir or rankings file to compare with, or None.
        rankings_file: Where the model's lists go, or None.
        report_folder: Where the report goes, or None.
        item_vectors: `[vocabulary_size, embedding_dim]` float32, once the
            model is loaded; None where it is of another catalogue.
        results: The results, once there are any.
        comparison: The comparison with the rival, by metric.
    """

    folder: Workdir
    config: TrainConfig
    vocabulary: Vocabulary
    data: PreparedData
    notes: list[str]
    baselines: list[str]
    rival: pathlib.Path | None = None
    rankings_file: pathlib.Path | None = None
    report_folder: pathlib.Path | None = None
    item_vectors: np.ndarray | None = None
    results: Results | None = None
    comparison: dict[str, Comparison] = dataclasses.field(default_factory=dict)

    def evaluate(
        self, rankings: Sequence[str], *, tune_baselines: bool = False
    ) -> None:
        """Measures the model, its baselines and whatever it stands beside.

        Args:
            rankings: Files of other systems on the same queries.
            tune_baselines: Whether the settings of all baselines are chosen
                on the validation queries; see `compare_with_baselines`.

        Raises:
            InputError: A rankings file cannot be used.
        """
        # Files are read first: their mistakes are told before the long part.
        others = [self._read_rankings(pathlib.Path(path)) for path in rankings]
        rival = None
        if self.rival is not None and not self.rival.is_dir():
            rival = self._read_rankings(self.rival)
        recommender = self._load(self.folder.path)
        if not isinstance(recommender, OtherCatalogue):
            self.item_vectors = recommender.item_vectors()
        results = compare_with_baselines(
            recommender,
            self.data.split,
            self.data.vocabulary.size,
            baselines=self.baselines,
            tune_all=tune_baselines,
            exclude_history=self._exclude_history,
            lists=True,
        )
        if self.rival is not None and rival is None:
            rival = dataclasses.replace(
                self._measure(self._load(self.rival)), name=str(self.rival)
            )
        if rival is not None:
            others.append(rival)
            self.comparison = compare(
                results.model, rival, [parse_metric(name) for name in _METRICS]
            )
        self.results = dataclasses.replace(results, others=tuple(others))

    def report(self, *, slices: bool = False) -> str:
        """Returns the results for people.

        Args:
            slices: Whether parts of the queries are shown as well.
        """
        results = self.finished()
        parts = [results.table(intervals=True), *self.notes]
        if self.comparison:
            parts.append(self._comparison_table())
        if slices:
            for name, members in self._slices().items():
                parts.append(f"By {name}:\n\n{_slices_table(members)}")
        found = self.health
        parts.append(describe_lists(found, self.list_metrics))
        if found.warning:
            parts.append(f"Warning: {found.warning}.")
        return "\n\n".join(parts)

    def write(self) -> None:
        """Writes metrics.json and, where asked, the model's lists."""
        results = self.finished()
        model = results.model
        write_metrics(
            self.folder.metrics,
            results,
            **self._training_entries(),
            data=self.data.name,
            notes=self.notes,
            intervals={
                name: [interval.low, interval.high]
                for name, interval in intervals(model).items()
            },
            others={each.name: each.metrics() for each in results.others},
            comparison={
                name: dataclasses.asdict(each)
                for name, each in self.comparison.items()
            },
            lists=self.list_metrics,
            health=dataclasses.asdict(self.health),
        )
        if self.rankings_file is not None:
            with files.atomic_path(self.rankings_file) as path:
                write_rankings(model, self.data.vocabulary, path)

    def write_report(self) -> pathlib.Path:
        """Writes the page of HTML and returns its path."""
        if self.report_folder is None:
            raise ValueError("`report_folder` must be set. Received: None")
        return write_report(self, self.report_folder)

    def _training_entries(self) -> dict[str, Any]:
        """Returns what recsys.train wrote of the training, to be kept."""
        if not self.folder.metrics.is_file():
            return {}
        before = files.read_json(self.folder.metrics)
        names = ("best_epoch", "training")
        return {name: before[name] for name in names if name in before}

    @property
    def _exclude_history(self) -> bool:
        return self.config.excludes_history

    def finished(self) -> Results:
        """Returns the results, which `evaluate` must have found."""
        if self.results is None:
            raise ValueError("`evaluate` must come first. Received: no results")
        return self.results

    def _load(
        self, workdir: pathlib.Path
    ) -> TwoTowerRecommender | OtherCatalogue:
        """Loads a model so that it answers about the items of the data."""
        from recsys.recommender import load

        recommender = load(workdir)
        known = recommender.vocabulary
        if np.array_equal(known.item_ids, self.data.vocabulary.item_ids):
            return recommender
        return OtherCatalogue(recommender, known, self.data.vocabulary)

    def _measure(
        self, recommender: TwoTowerRecommender | OtherCatalogue
    ) -> Evaluation:
        return evaluate(
            recommender,
            asked_queries(self.data.split)[0],
            protocol=self.data.split.protocol,
            exclude_history=self._exclude_history,
        )

    def _read_rankings(self, path: pathlib.Path) -> Evaluation:
        return read_rankings(
            path,
            asked_queries(self.data.split)[0],
            self.data.vocabulary,
            protocol=self.data.split.protocol,
            exclude_history=self._exclude_history,
        )

    def _comparison_table(self) -> str:
        rows = [
            [
                name,
                f"{each.first:.4f}",
                f"{each.second:.4f}",
                f"{each.difference.mean:+.4f}",
                f"{each.difference.low:+.4f} … {each.difference.high:+.4f}",
                f"{each.p_value:.4f}",
            ]
            for name, each in self.comparison.items()
        ]
        header = ["metric", "model", "other", "difference", "95 %", "p"]
        return (
            f"Against {self.rival}, query by query:\n\n{aligned(header, rows)}"
        )

    def _slices(self) -> dict[str, list[Slice]]:
        model = self.finished().model
        queries, _ = asked_queries(self.data.split)
        return {
            "popularity of the relevant item": by_item_popularity(
                model, self.item_counts()
            ),
            "length of the history": by_history_length(
                model, queries.history_ends - queries.history_starts
            ),
        }

    @functools.cached_property
    def health(self) -> Health:
        """Signs of a recommender that works, or of one that does not."""
        return health(
            self.finished().model, self.item_counts(), self.item_vectors
        )

    @functools.cached_property
    def list_metrics(self) -> dict[str, float | None]:
        """Returns the metrics of the lists, None where not defined."""
        found = list_summary(
            self.finished().model,
            asked_queries(self.data.split)[0],
            self.item_counts(),
            int(np.count_nonzero(self.data.split.train.lengths)),
            genre_matrix(self.data.vocabulary),
        )
        return {
            name: None if np.isnan(value) else value
            for name, value in found.items()
        }

    def item_counts(self) -> np.ndarray:
        """`[vocabulary_size]` int64, interactions in training."""
        counts = self.data.vocabulary.items.column(TRAIN_COUNT).to_numpy()
        return np.append(np.zeros(FIRST_ITEM_INDEX, np.int64), counts)


def prepare_run(
    workdir: pathlib.Path,
    *,
    fields: dict[str, Any],
    protocol: str | None,
    baselines: str | None,
    compare: str | None,
    write_rankings: str | None,
    report: str | None = None,
) -> EvaluationRun:
    """Reads everything but the model, and finds the mistakes.

    Args:
        workdir: Where the model is.
        fields: Fields of the configuration that name another log, or other
            cutoffs of the temporal split.
        protocol: Another protocol than the model's own, or None.
        baselines: Names with commas between; None for the usual ones.
        compare: A workdir or rankings file to compare with, or None.
        write_rankings: Where the model's lists go, or None.
        report: Where the report goes, or None.

    Returns:
        The run, ready to be evaluated.

    Raises:
        InputError: Something that was given cannot be used.
    """
    folder = Workdir(workdir)
    config = folder.read_config()
    names = list(DEFAULT_BASELINES)
    if baselines is not None:
        names = [name.strip() for name in baselines.split(",") if name.strip()]
    check_baselines(names)
    if protocol is not None and protocol not in SPLITS:
        raise InputError(
            f"--protocol must be one of {', '.join(SPLITS)}. "
            f"Received: {protocol!r}"
        )
    rival = None if compare is None else pathlib.Path(compare)
    if rival is not None:
        _check_rival(rival, config)
    target = None if write_rankings is None else pathlib.Path(write_rankings)
    if target is not None and not target.absolute().parent.is_dir():
        raise InputError(
            "--write_rankings must name a file in a folder that exists. "
            f"Received: {str(target)!r}"
        )
    if report is not None:
        check_report(report)
    vocabulary = Vocabulary.load(folder.vocabulary)
    asked = evaluation_data(config, vocabulary, fields, protocol)
    return EvaluationRun(
        folder=folder,
        config=config,
        vocabulary=vocabulary,
        data=asked.data,
        notes=asked.notes,
        baselines=names,
        rival=rival,
        rankings_file=target,
        report_folder=None if report is None else pathlib.Path(report),
    )


def _check_rival(rival: pathlib.Path, config: TrainConfig) -> None:
    """Checks that another model may be asked the same queries.

    One that was trained on other data or by another split may have seen
    what is asked.
    """
    if not rival.exists():
        raise InputError(
            "--compare must be a workdir or a rankings file that exists. "
            f"Received: {str(rival)!r}"
        )
    if not rival.is_dir():
        return
    other = Workdir(rival).read_config()
    names = list(FIELD_HELP["Data"])
    if config.split in ("held_out_users", "held_out_items"):
        names.append("seed")
    differing = [
        f"{name}={getattr(other, name)!r}"
        for name in names
        if getattr(other, name) != getattr(config, name)
    ]
    if differing:
        raise InputError(
            f"--compare={rival}: expected a model of the same data and split, "
            "since another may have been trained on what is asked. "
            f"Received: {', '.join(differing)}"
        )


def _slices_table(slices: Sequence[Slice]) -> str:
    rows = []
    for part in slices:
        metrics = part.evaluation.metrics(
            [parse_metric(name) for name in _METRICS]
        )
        rows.append(
            [
                part.name,
                f"{part.evaluation.num_queries:,}",
                f"{part.share:.1%}",
                *(f"{metrics[name]:.4f}" for name in _METRICS),
            ]
        )
    return aligned(["slice", "queries", "share", *_METRICS], rows)
