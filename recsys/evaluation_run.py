"""One run of `python -m recsys.evaluate`, from a workdir to metrics.json."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.config_flags import FIELD_HELP
from recsys.data.prepare import TRAIN_COUNT, PreparedData
from recsys.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from recsys.errors import InputError
from recsys.evaluation import (
    Comparison,
    Evaluation,
    Health,
    Slice,
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
from recsys.evaluation.table import aligned
from recsys.evaluation_report import check_report, write_report
from recsys.metrics import parse_metric
from recsys.results import (
    DEFAULT_BASELINES,
    Results,
    asked_queries,
    check_baselines,
    compare_with_baselines,
    write_metrics,
)
from recsys.stored_model import OtherCatalogue, evaluation_data
from recsys.training import files
from recsys.training.config import SPLITS, TrainConfig
from recsys.training.workdir import Workdir

if TYPE_CHECKING:
    from recsys.recommender import Recommender as TwoTowerRecommender

_METRICS = ("recall@10", "ndcg@10")


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
        found = self._health()
        parts.append(describe_lists(found, self._list_metrics()))
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
            lists=self._list_metrics(),
            health=dataclasses.asdict(self._health()),
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

    def _health(self) -> Health:
        return health(
            self.finished().model, self.item_counts(), self.item_vectors
        )

    def _list_metrics(self) -> dict[str, float | None]:
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
