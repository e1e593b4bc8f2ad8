"""A training run in Python: from a log to a model that recommends."""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from recsys import files
from recsys.command_line import load_tensorflow
from recsys.config import SOURCE_FIELDS, TrainConfig, make_config
from recsys.data.prepare import user_histories
from recsys.data.sequences import Sequences
from recsys.data.side_information import Request
from recsys.data.sources import Log
from recsys.errors import InputError
from recsys.evaluation.comparison import DEFAULT_BASELINES
from recsys.evaluation.run import (
    EvaluationRun,
    evaluate_workdir,
    evaluation_data,
)
from recsys.training import Callback, train
from recsys.training.growth import is_written, write_log
from recsys.workdir import Workdir

# As the commands load it, for the same weights and as few messages. Nothing
# that is imported above needs it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
load_tensorflow()
from recsys import histories, recommender  # noqa: E402
from recsys.reranking import Rules  # noqa: E402


def fit(
    log: Log | str | os.PathLike[str],
    workdir: str | os.PathLike[str] | None = None,
    *,
    preset: str | None = None,
    callbacks: Sequence[Callback] = (),
    verbose: bool = True,
    evaluate: bool = True,
    **fields: Any,
) -> TrainedModel:
    """Trains a model, as `python -m recsys.train` does.

    A log without a path is written into the workdir, for the commands. The same
    call with the same log resumes a run, or loads one that is finished.

    Args:
        log: The log, or what `--data` takes, such as a path.
        workdir: The folder of the run. Default: a temporary one, which lasts
            as long as the model; see `TrainedModel.save`.
        preset: As the flag `--preset`.
        callbacks: Follow the run; see `recsys.training.Callback`.
        verbose: Whether to describe the data and the results on standard
            output, and to show progress on standard error.
        evaluate: Whether to evaluate the model beside the baselines on the
            test queries at the end and write `metrics.json`.
        **fields: Fields of `recsys.training.TrainConfig`, such as
            `num_epochs=3`.

    Returns:
        The model of the best epoch.

    Raises:
        InputError: The log or the workdir cannot be used, or a field is out
            of range or would be ignored.
        OSError, FloatingPointError: As for `recsys.training.train`.
    """
    own = Workdir(pathlib.Path(workdir or tempfile.mkdtemp(prefix="recsys-")))
    is_stored = False
    try:
        config = _config(log, own, preset, fields)
        if isinstance(log, Log) and log.source is None:
            is_stored = _store(log, own, config)
        result = train(
            config,
            own.path,
            verbose=verbose,
            evaluate=evaluate,
            callbacks=callbacks,
        )
        if verbose and result.results is not None:
            print(f"\n{result.results.table()}\n")
        model = load(own.path)
    except BaseException:
        if workdir is None:
            shutil.rmtree(own.path, ignore_errors=True)
        elif is_stored and not own.config.exists():
            shutil.rmtree(own.log)  # Another log may be tried here.
        raise
    if workdir is None:
        weakref.finalize(model, shutil.rmtree, own.path, ignore_errors=True)
    return model


def _config(
    log: Log | str | os.PathLike[str],
    folder: Workdir,
    preset: str | None,
    fields: dict[str, Any],
) -> TrainConfig:
    """Returns the configuration of a call of `fit`."""
    if not isinstance(log, Log):
        source = {"data": os.fspath(log)}
    elif log.source is None:
        source = {"data": str(folder.log)}
    else:
        source = {n: getattr(log.source, n) for n in SOURCE_FIELDS}
    ignored = SOURCE_FIELDS if isinstance(log, Log) else ("data",)
    if given := [name for name in ignored if name in fields]:
        raise InputError(
            f"`{given[0]}` must be left to the log, which says it. Received: "
            f"{given[0]}={fields[given[0]]!r}"
        )
    config = make_config(preset, {**source, **fields})
    if config.strategy == "multi_worker":
        raise InputError(
            "several processes must call `recsys.training.train`, which loads "
            "no model. Received: strategy='multi_worker'"
        )
    return config


def _store(log: Log, folder: Workdir, config: TrainConfig) -> bool:
    """Writes a log into a workdir; returns whether it was not there yet."""
    folder.check(config)
    with folder.lock():
        if not folder.log.exists():
            with files.atomic_path(folder.log) as temporary:
                temporary.mkdir()
                write_log(log, temporary)
            return True
        if not is_written(log, folder.log):
            raise InputError(
                f"{folder.log}: expected the log that this run was started "
                "with; name another workdir for another log. Received: "
                f"another one, of {len(log.interactions):,} interactions"
            )
    return False


def load(workdir: str | os.PathLike[str]) -> TrainedModel:
    """Loads the best model of a training run.

    Args:
        workdir: The folder into which `recsys.train`, `fit` or
            `TrainedModel.save` wrote it.

    Returns:
        The model with its vocabulary.

    Raises:
        InputError: The folder does not exist or holds no usable model.
    """
    folder = Workdir(pathlib.Path(workdir))
    config = folder.read_config()
    return TrainedModel(
        recommender.restore(folder, config), folder.path, config
    )


class TrainedModel(recommender.Recommender):
    """The model of a training run; `recsys.fit` and `recsys.load` return it.

    Args:
        trained: The model and its vocabulary.
        workdir: The folder of the run.
        config: Its configuration.
    """

    def __init__(
        self,
        trained: recommender.Recommender,
        workdir: pathlib.Path,
        config: TrainConfig,
    ) -> None:
        super().__init__(
            trained.model,
            trained.vocabulary,
            trained.max_history_length,
            side=trained.side,
        )
        self.workdir = workdir
        self.config = config

    def evaluate(
        self,
        log: Log | None = None,
        *,
        protocol: str | None = None,
        baselines: Collection[str] = DEFAULT_BASELINES,
    ) -> EvaluationRun:
        """Ranks the catalog for the test queries of a log, beside baselines.

        As `python -m recsys.evaluate`, but writes nothing.

        Args:
            log: The log, filtered and split as configured. Default: the one
                that the model was trained on.
            protocol: What to hold out. Default: as in training.
            baselines: Names of baselines, which are fitted to the log.

        Returns:
            The results: `print(found.text())`, `found.results.model.metrics`.

        Raises:
            InputError: The log cannot be read, or the protocol asks for what
                the model was trained on.
        """
        folder = Workdir(self.workdir)
        asked = evaluation_data(self.config, self.vocabulary, {}, protocol, log)
        return evaluate_workdir(
            folder, self.config, asked, baselines=baselines, recommender=self
        )

    def recommend_users(
        self,
        log: Log | None = None,
        users: Iterable[str | int] | None = None,
        k: int = 10,
        **options: Any,
    ) -> pa.Table:
        """Recommends items for users of a log.

        Their histories are all of their interactions that the filters of the
        configuration leave; what they dislike is never recommended. What is
        ignored in them is counted on standard error.

        Args:
            log: The log. Default: the one that the model was trained on, as it
                is at the first such call.
            users: Raw ids of the users, in the order wanted. Default: all, in
                the order of the log.
            k: How many items for each user, at most.
            **options: As for `recommend`: `context={…}`, which goes for all,
                `exclude_history=False`, `rules`, or filters such as
                `items=[…]` and `where="…"`.

        Returns:
            An Arrow table, `.to_pandas()`, with a row for each item: `user`,
            `rank` (from 1), `item`, `score` (float32; the number of training
            interactions for users without a known item, who get the most
            popular ones) and `title`, the id where no title is known.

        Raises:
            InputError: The log cannot be read, a user is not in it, or an
                option cannot be used.
        """
        parts = self._users
        if log is not None:
            parts = user_histories(self.config, self.vocabulary, log)
        if users is not None:
            if isinstance(users, str):
                raise InputError(
                    f"`users` must be a list of ids. Received: {users!r}"
                )
            found = histories.users_of(parts, list(map(str, users)))
            parts = [lambda: found]
        return self._table(parts, k, **options)

    @functools.cached_property
    def _users(self) -> list[Callable[[], Sequences]]:
        return user_histories(self.config, self.vocabulary)

    def recommend_histories(
        self,
        queries: Mapping[Any, Any] | Iterable[Any],
        k: int = 10,
        **options: Any,
    ) -> pa.Table:
        """Recommends items for many histories; see `recommend_users`.

        Args:
            queries: Histories of raw item ids, oldest first, by the id of the
                query; or one after the other, whose ids are then "0", "1" and
                so on. Where more is known, mappings with "history", whose
                entries may be mappings with "item", "user" and "context"; see
                `recommend`.
            k: How many items for each history, at most.
            **options: As for `recommend_users`.

        Returns:
            As `recommend_users`, with `query_id` in the place of `user`.

        Raises:
            InputError: A history is a text, two queries have the same id as
                text, or an option cannot be used.
        """
        if not isinstance(queries, Mapping):
            queries = dict(enumerate(queries))
        asked: dict[str, Any] = {}
        for name, items in queries.items():
            if isinstance(items, str):
                raise InputError(
                    f"`queries` must be lists of ids. Received: {items!r}"
                )
            known: Mapping[str, Any] = {"history": items}
            if isinstance(items, Mapping):
                known = items
            if known.keys() - {"history", "user", "context"}:
                raise InputError(
                    "a query must have `history`, `user` and `context`. "
                    f"Received: {', '.join(map(str, known))}"
                )
            request = Request.of(
                list(known.get("history", ())),
                known.get("user"),
                known.get("context"),
            )
            is_plain = not request.has_features
            asked[str(name)] = list(request.items) if is_plain else request
        if len(asked) < len(queries):
            raise InputError(
                "the ids of `queries` must differ as texts. Received: "
                f"{len(queries)} queries with {len(asked)} such ids"
            )
        return self._table(asked, k, **options)

    def _table(
        self,
        asked: Any,
        k: int,
        *,
        exclude_history: bool = True,
        rules: Rules | None = None,
        context: Mapping[str, Any] | None = None,
        **filters: Any,
    ) -> pa.Table:
        if k < 1:
            raise InputError(f"`k` must be positive. Received: {k}")
        table, summary = histories.recommend_table(
            self,
            asked,
            k,
            exclude_history=exclude_history,
            rules=self._rules(rules, filters),
            context=context,
        )
        print(summary.text(k), file=sys.stderr)
        return table

    def save(self, path: str | os.PathLike[str]) -> None:
        """Copies the run to another folder, for `recsys.load` and commands.

        Args:
            path: A new or an empty folder, outside of the workdir.

        Raises:
            InputError: The folder has content, or is within the workdir.
            OSError: It cannot be written.
        """
        target = pathlib.Path(os.path.expanduser(path))
        if target.resolve().is_relative_to(self.workdir.resolve()):
            raise InputError(
                f"`path` must be outside of the workdir, {self.workdir}. "
                f"Received: {str(path)!r}"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic_path(target) as temporary:
            shutil.copytree(
                self.workdir,
                temporary,
                ignore=shutil.ignore_patterns(".lock", ".recsys-*"),
            )
