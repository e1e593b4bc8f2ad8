"""One run of `python -m recsys.evaluate`, from a workdir to metrics.json."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

import recsys
from recsys import files
from recsys.config import (
    DEFAULTS,
    SOURCE_FIELDS,
    SPLITS,
    TEMPORAL_FIELDS,
    TrainConfig,
)
from recsys.data.prepare import (
    PreparedData,
    build_data,
    prepare_log,
    read_log,
    same_training_items,
    train_counts,
)
from recsys.data.shards import is_sharded
from recsys.data.sources import Log
from recsys.data.splits import Queries, Split
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError, need_packages
from recsys.evaluation import (
    Comparison,
    Evaluation,
    Health,
    Recommender,
    Slice,
    audit,
    by_event,
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
    TABLE_METRICS,
    Results,
    compare_with_baselines,
)
from recsys.evaluation.results import aligned
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.metrics import parse_metric
from recsys.report import ReportData
from recsys.workdir import Workdir


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """The data that a stored model is evaluated on.

    Attributes:
        data: The log, its items and its split.
        notes: Caveats for the reader of the results.
    """

    data: PreparedData
    notes: list[str]


def evaluation_data(
    config: TrainConfig,
    vocabulary: Vocabulary,
    fields: dict[str, Any],
    protocol: str | None,
    log: Log | None = None,
) -> EvaluationData:
    """Reads the data for an evaluation, and checks that it is a fair one.

    On the data that the model was trained on, a split other than the model's
    own must not ask for anything in its training set; the baselines are then
    fitted to that training set as well.

    Args:
        config: The model's configuration.
        vocabulary: The model's items.
        fields: Fields of the configuration that name another log or other
            cutoffs of the temporal split; empty for the model's own.
        protocol: Another protocol than the model's own, or None.
        log: A log in memory, to use instead of the one that is named.

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
    if log is None and is_sharded(config.data):
        # Shards of another split than the model's are an error here.
        data = own = build_data(asked)
        notes += _drawn_queries(data)
    else:
        is_own = log is None and not source
        log = log or read_log(config)
        data = prepare_log(log, asked, must_have_kinds=is_own)
        own = data if asked == config else _own_data(log, config)
    if own is None or not same_training_items(own.vocabulary, vocabulary):
        notes.append(
            "These are not the data that the model was trained on, so it "
            "cannot be checked whether it has seen the test queries. The "
            "baselines are fitted to the training part of these data."
        )
        notes += _unknown_items(data, vocabulary)
    elif asked != config:
        flags = {} if protocol is None else {"protocol": protocol}
        _check_leaks(data.split, own.split, _as_flags({**flags, **cutoffs}))
        notes += _notes_on_choice(data.split, own.split)
        split = dataclasses.replace(data.split, train=own.split.train)
        data = dataclasses.replace(data, split=split)
    return EvaluationData(data, notes)


class OtherCatalog:
    """A recommender that scores the items of another log.

    Items are matched by raw id. An item that the recommender does not know is
    the unknown item in a history, and ranks last among the candidates.

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
        return self._of_other(scores)

    def query_scores(self, queries: Queries, rows: np.ndarray) -> np.ndarray:
        """Scores the items for queries, with the features of these."""
        score = getattr(self._recommender, "query_scores", None)
        if score is None:
            return self.scores(*queries.histories(rows))
        return self._of_other(score(queries, rows, self._indices))

    def _of_other(self, scores: np.ndarray) -> np.ndarray:
        scores = scores[:, self._indices]
        scores[:, self._indices == UNKNOWN_INDEX] = -np.inf
        return scores


def _drawn_queries(data: PreparedData) -> list[str]:
    """Describes the sample of users that shards evaluate, if not all."""
    num_asked = data.split.validation.sequences.num_users
    num_users = data.split.train.num_users
    if num_asked + data.num_single >= num_users:
        return []
    return [
        f"{num_asked:,} of {num_users:,} users are evaluated, sampled by a "
        "hash of their ids when the shards were prepared."
    ]


def _at_other_source(
    config: TrainConfig, source: dict[str, Any]
) -> TrainConfig:
    """Returns the configuration for another log, with the same filters."""
    fresh: dict[str, Any] = {}
    if source.get("data", config.data) != config.data:
        fresh = dict.fromkeys(SOURCE_FIELDS)
    return dataclasses.replace(config, **{**fresh, **source})


def _asked_config(
    config: TrainConfig, protocol: str | None, cutoffs: dict[str, Any]
) -> TrainConfig:
    """Returns the configuration with another split, if so asked."""
    split = config.split if protocol is None else protocol
    if split not in SPLITS:
        raise InputError(
            f"--protocol must be one of {', '.join(SPLITS)}. "
            f"Received: {split!r}"
        )
    if cutoffs and split != "temporal":
        raise InputError(
            f"--{next(iter(cutoffs))} must go with --protocol=temporal. "
            f"Received: {_as_flags(cutoffs)} with the protocol {split}"
        )
    if split != config.split:
        cutoffs = {n: cutoffs.get(n, DEFAULTS[n]) for n in TEMPORAL_FIELDS}
    return dataclasses.replace(config, split=split, **cutoffs)


def _own_data(log: Log, config: TrainConfig) -> PreparedData | None:
    """Splits a log as in training; None where it cannot be the same log."""
    try:
        return prepare_log(log, config)
    except InputError:
        return None


def _as_flags(values: dict[str, Any]) -> str:
    return " ".join(f"--{name}={value}" for name, value in values.items())


def _check_leaks(split: Split, own: Split, flags: str) -> None:
    """Raises InputError if a split tests what the model was trained on."""
    # The audit of the new queries against the model's own training set.
    queries, _ = split.reported
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
    """Warns if the model was selected on some of the queries."""
    queries, _ = split.reported
    num_chosen_by = _num_in_common(queries, own.validation)
    if not num_chosen_by:
        return []
    return [
        f"The model was selected on {num_chosen_by:,} of these "
        f"{len(queries):,} queries (they were its validation queries), so the "
        "results are optimistic."
    ]


def _num_in_common(queries: Queries, others: Queries) -> int:
    """Counts queries whose first target is a target of the others."""

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
    """Describes the items of a log that the model does not know."""
    unknown = vocabulary.indices_of(data.vocabulary) == UNKNOWN_INDEX
    num_unknown = int(np.count_nonzero(unknown[FIRST_ITEM_INDEX:]))
    if not num_unknown:
        return []
    queries, _ = data.split.reported
    targets, _ = queries.targets(np.arange(len(queries)))
    return [
        f"{num_unknown:,} of {data.vocabulary.num_items:,} items are unknown "
        "to the model, which ranks them last; "
        f"{int(np.count_nonzero(unknown[targets])):,} of {len(targets):,} "
        "relevant items are among them."
    ]


@dataclasses.dataclass
class EvaluationRun:
    """The results of a model on a split, beside whatever it is compared with.

    Attributes:
        folder: The workdir.
        config: The configuration that the model was trained with.
        data: The log and its split.
        results: The model and its baselines.
        notes: Caveats for the reader of the results.
        item_vectors: `[vocabulary_size, dim]` float32; None where
            the model has another catalog than the data.
        rival: A workdir or rankings file that the model is compared with.
        comparison: That comparison, by metric.
    """

    folder: Workdir
    config: TrainConfig
    data: PreparedData
    results: Results
    notes: list[str] = dataclasses.field(default_factory=list)
    item_vectors: np.ndarray | None = None
    rival: pathlib.Path | None = None
    comparison: dict[str, Comparison] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """`[vocabulary_size]` int64, training interactions per item."""
        return train_counts(self.data.vocabulary)

    @functools.cached_property
    def queries(self) -> Queries:
        """The queries that were evaluated."""
        return self.data.split.reported[0]

    @functools.cached_property
    def health(self) -> Health:
        """Signs of a recommender that works, or of one that does not."""
        return health(self.results.model, self.item_counts, self.item_vectors)

    @functools.cached_property
    def num_users(self) -> int:
        """Users of the training set."""
        return int(np.count_nonzero(self.data.split.train.lengths))

    @functools.cached_property
    def list_metrics(self) -> dict[str, float | None]:
        """The metrics of the lists, None where not defined."""
        found = list_summary(
            self.results.model,
            self.queries,
            self.item_counts,
            self.num_users,
            genre_matrix(self.data.vocabulary),
        )
        return {
            name: None if np.isnan(value) else value
            for name, value in found.items()
        }

    @functools.cached_property
    def by_event(self) -> list[Slice]:
        """Results by kind of event, if the queries ask for several."""
        found = by_event(self.results.model, self.queries)
        return found if len(found) > 1 else []

    @functools.cached_property
    def slices(self) -> dict[str, list[Slice]]:
        """Results for parts of the queries, by what divides them."""
        model = self.results.model
        lengths = self.queries.history_ends - self.queries.history_starts
        return {
            "popularity of the relevant item": by_item_popularity(
                model, self.item_counts
            ),
            "length of the history": by_history_length(model, lengths),
        }

    def text(self, *, slices: bool = False) -> str:
        """Returns the results as text for people.

        Args:
            slices: Whether to include parts of the queries.
        """
        parts = [self.results.table(intervals=True), *self.notes]
        if self.comparison:
            parts.append(self._comparison_table())
        if self.by_event:
            table = _slices_table(self.by_event)
            parts.append(f"By kind of the relevant event:\n\n{table}")
        if slices:
            for by, members in self.slices.items():
                parts.append(f"By {by}:\n\n{_slices_table(members)}")
        parts.append(describe_lists(self.health, self.list_metrics))
        if self.health.warning:
            parts.append(f"Warning: {self.health.warning}.")
        return "\n\n".join(parts)

    def write_metrics(
        self,
        evaluated_with: dict[str, Any],
        *,
        slices: bool = False,
        **more: Any,
    ) -> None:
        """Writes metrics.json.

        Args:
            evaluated_with: The flags that changed the results.
            slices: Whether to include parts of the queries.
            **more: Further entries. What recsys.train wrote about the training
                is kept.
        """
        model = self.results.model
        parts: dict[str, Any] = {}
        if self.by_event:
            parts["events"] = _entries(self.by_event)
        if slices:
            parts["slices"] = {n: _entries(s) for n, s in self.slices.items()}
        files.write_json(
            self.folder.metrics,
            {
                **self.results.to_dict(),
                **self.folder.training_entries(),
                "data": self.data.name,
                "notes": self.notes,
                "intervals": {
                    name: [interval.low, interval.high]
                    for name, interval in intervals(model).items()
                },
                "others": {
                    each.name: each.metrics() for each in self.results.others
                },
                "comparison": {
                    name: dataclasses.asdict(each)
                    for name, each in self.comparison.items()
                },
                "lists": self.list_metrics,
                **parts,
                "health": dataclasses.asdict(self.health),
                "evaluated_with": evaluated_with,
                "text": self.text().splitlines(),
                **more,
            },
        )

    def write_rankings(self, path: pathlib.Path) -> None:
        """Writes the model's lists as JSON lines."""
        with files.atomic_path(path) as temporary:
            write_rankings(self.results.model, self.data.vocabulary, temporary)

    def write_report(self, folder: pathlib.Path) -> pathlib.Path:
        """Writes the report and returns its path.

        Args:
            folder: Gets `index.html`; made if missing.

        Raises:
            OSError: It cannot be written.
        """
        # Needs the extra [report].
        from recsys.report.page import render_page

        results = self.results
        history, best_epoch = self.folder.read_history(self.config)
        page = render_page(
            ReportData(
                model=results.model,
                others=[*results.baselines.values(), *results.others],
                queries=self.queries,
                part=results.part,
                vocabulary=self.data.vocabulary,
                item_counts=self.item_counts,
                num_users=self.num_users,
                data_name=self.data.name,
                health=self.health,
                list_metrics=self.list_metrics,
                item_vectors=self.item_vectors,
                history=history,
                best_epoch=best_epoch,
                notes=[*self.notes, *results.tuning_notes()],
                skipped=results.skipped,
                rival=None if self.rival is None else str(self.rival),
                comparison=self.comparison,
            )
        )
        folder.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(folder / "index.html") as path:
            path.write_text(page, "utf-8")
        return folder / "index.html"

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


def evaluate_workdir(
    folder: Workdir,
    config: TrainConfig,
    asked: EvaluationData,
    *,
    baselines: Collection[str] = DEFAULT_BASELINES,
    tune_baselines: bool = False,
    rankings: Collection[pathlib.Path] = (),
    rival: pathlib.Path | None = None,
    recommender: Any = None,
) -> EvaluationRun:
    """Evaluates a stored model, its baselines and other systems.

    Args:
        folder: The workdir.
        config: The model's configuration.
        asked: The data; see `evaluation_data`.
        baselines: Names in `BASELINES`.
        tune_baselines: Whether to choose the settings of all baselines on the
            validation queries; see `compare_with_baselines`.
        rankings: Rankings files of other systems on the same queries.
        rival: A workdir or rankings file to compare the model with.
        recommender: The model. Default: it is loaded.

    Returns:
        The results.

    Raises:
        InputError: A rankings file or a workdir cannot be used.
    """
    data, excludes = asked.data, config.excludes_history
    # Files are read first: their errors are reported before the slow part.
    others = [_read_lists(path, data, excludes) for path in rankings]
    if rival is not None and not rival.is_dir():
        others.append(_read_lists(rival, data, excludes))
    recommender = _scorer(
        recommender or recsys.recommender.restore(folder, config),
        data.vocabulary,
    )
    results = compare_with_baselines(
        recommender,
        data.split,
        data.vocabulary.size,
        baselines=baselines,
        tune_all=tune_baselines,
        exclude_history=excludes,
        lists=True,
    )
    if rival is not None and rival.is_dir():
        others.append(_measure_rival(rival, data, excludes))
    is_other = isinstance(recommender, OtherCatalog)
    run = EvaluationRun(
        folder,
        config,
        data,
        dataclasses.replace(results, others=tuple(others)),
        asked.notes,
        None if is_other else recommender.item_vectors(),
        rival,
    )
    if rival is not None:
        metrics = [parse_metric(name) for name in TABLE_METRICS]
        run.comparison = compare(results.model, others[-1], metrics)
    return run


def _read_lists(
    path: pathlib.Path, data: PreparedData, exclude_history: bool
) -> Evaluation:
    return read_rankings(
        path,
        data.split.reported[0],
        data.vocabulary,
        protocol=data.split.protocol,
        exclude_history=exclude_history,
    )


def _measure_rival(
    workdir: pathlib.Path, data: PreparedData, exclude_history: bool
) -> Evaluation:
    found = evaluate(
        _scorer(recsys.recommender.restore(Workdir(workdir)), data.vocabulary),
        data.split.reported[0],
        protocol=data.split.protocol,
        exclude_history=exclude_history,
    )
    return dataclasses.replace(found, name=str(workdir))


def _scorer(recommender: Any, vocabulary: Vocabulary) -> Any:
    """Returns a model so that it scores the items of a vocabulary."""
    known = recommender.vocabulary
    if np.array_equal(known.item_ids, vocabulary.item_ids):
        return recommender
    return OtherCatalog(recommender, known, vocabulary)


def check_rival(rival: pathlib.Path, config: TrainConfig) -> None:
    """Checks that a model may be compared with another on its queries.

    A model that was trained on other data or with another split may have been
    trained on what is asked.

    Args:
        rival: A workdir or a rankings file.
        config: The configuration of the model that is evaluated.

    Raises:
        InputError: The path does not exist, or the other model does not fit.
    """
    if not rival.exists():
        raise InputError(
            "--compare must be a workdir or a rankings file that exists. "
            f"Received: {str(rival)!r}"
        )
    if not rival.is_dir():
        return
    differing = [
        f"{name}={value!r}"
        for name, value in config.data_differences(
            Workdir(rival).read_config()
        ).items()
    ]
    if differing:
        raise InputError(
            f"--compare={rival}: expected a model of the same data and split, "
            "since another may have been trained on what is asked. "
            f"Received: {', '.join(differing)}"
        )


def check_report(folder: pathlib.Path) -> None:
    """Checks that a report can be drawn, and written into a folder.

    Args:
        folder: The folder; it need not exist yet.

    Raises:
        InputError: It cannot.
    """
    need_packages("--report", "report", "matplotlib", "jinja2")
    if not files.can_write(folder):
        raise InputError(
            "--report must be a folder that can be written. "
            f"Received: {str(folder)!r}"
        )


def _entries(slices: Sequence[Slice]) -> dict[str, Any]:
    """Returns what metrics.json holds of slices."""
    return {
        each.name: {
            "num_queries": each.evaluation.num_queries,
            "share": each.share,
            "metrics": each.evaluation.metrics(),
        }
        for each in slices
    }


def _slices_table(slices: Sequence[Slice]) -> str:
    rows = []
    for part in slices:
        metrics = part.evaluation.metrics(
            [parse_metric(name) for name in TABLE_METRICS]
        )
        rows.append(
            [
                part.name,
                f"{part.evaluation.num_queries:,}",
                f"{part.share:.1%}",
                *(f"{value:.4f}" for value in metrics.values()),
            ]
        )
    return aligned(["slice", "queries", "share", *TABLE_METRICS], rows)
