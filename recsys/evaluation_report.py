"""The report of one run of `python -m recsys.evaluate`."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import numpy as np

from recsys.data.files import can_write
from recsys.errors import InputError
from recsys.evaluation.report import (
    ReportData,
    check_matplotlib,
    render_page,
)
from recsys.results import asked_queries
from recsys.training import files

if TYPE_CHECKING:
    from recsys.evaluation_run import EvaluationRun


def check_report(report: str) -> None:
    """Checks that a report can be drawn, and written into its folder.

    Args:
        report: The folder; it need not exist yet.

    Raises:
        InputError: One of the two cannot be.
    """
    check_matplotlib()
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
    # Reads checkpoints, and so loads TensorFlow.
    from recsys.training.history import read_history

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
