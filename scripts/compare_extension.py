"""Extending a model against training it anew, on the newest part of a log.

Run it from the checkout:

    python scripts/compare_extension.py
    python scripts/compare_extension.py --preset=movielens-1m --data=ml-1m

The newest interactions of the log, by `--share`, are held back; a model is
trained on the others, extended by them, and another is trained on everything.
All are asked the same test queries of the whole log. The table is also written
to `<workdir>/comparison.md`. The same command goes on where it was stopped; the
seconds are those of all epochs' steps, whenever they were made.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys import files
from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import SOURCE_FIELDS, TrainConfig, make_config
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.data.prepare import PreparedData
    from recsys.data.sources import Log

COMMAND = Command(
    "compare_extension",
    "Trains on the older part of a log, extends the model by the newer one, "
    "trains another on both, and compares them.",
    ["scripts/compare_extension.py"],
)
_FOLDER = "runs/compare-extension-<preset>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(
    float,
    "share",
    "How much of the log is new.",
    group="Run",
    default=0.1,
)
COMMAND.add_flag(
    int,
    "extension_epochs",
    "Epochs of the extension.",
    group="Run",
    default=3,
)
COMMAND.add_flag(
    float,
    "extension_learning_rate",
    "Its learning rate. Default: a third of the other's.",
    group="Run",
)
add_config_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Trains, extends, trains anew and prints the table.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    if not 0 < values["share"] < 1:
        raise InputError(
            f"--share must be between 0 and 1. Received: {values['share']}"
        )
    config = make_config(values["preset"], given_fields(values))
    folder = run_folder(values, _FOLDER)
    split_log(config, values["share"], folder)
    load_tensorflow()
    table = _compare(
        _at(config, folder / "old-log"),
        folder,
        values["extension_epochs"],
        values["extension_learning_rate"],
    )
    print(table)
    (folder / "comparison.md").write_text(table + "\n", "utf-8")
    return 0


def _at(config: TrainConfig, data: pathlib.Path) -> TrainConfig:
    fresh: dict[str, Any] = dict.fromkeys(SOURCE_FIELDS)
    return dataclasses.replace(config, **{**fresh, "data": str(data)})


def split_log(config: TrainConfig, share: float, folder: pathlib.Path) -> None:
    """Writes the older and the newer part of the log, once.

    Args:
        config: Names the log.
        share: How much of it is new.
        folder: Gets the folders `old-log` and `new-log`.

    Raises:
        InputError: Parts of another log or share are there.
    """
    from recsys.data.prepare import read_log
    from recsys.training.growth import write_log

    source = {name: getattr(config, name) for name in SOURCE_FIELDS}
    asked = {"share": share, **source}
    parts = folder / "parts.json"
    if parts.is_file():
        if (made := files.read_json(parts)) != asked:
            raise InputError(
                f"{folder}: expected no runs, or some of the same --share and "
                f"data; name another --workdir. Received: runs of {made}"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    log = read_log(config)
    times = log.interactions.timestamps
    cutoff = np.quantile(times, 1 - share)
    for name, rows in (
        ("old-log", times < cutoff),
        ("new-log", times >= cutoff),
    ):
        (folder / name).mkdir(exist_ok=True)
        write_log(_rows(log, np.flatnonzero(rows)), folder / name)
    files.write_json(parts, asked)


def _rows(log: Log, rows: np.ndarray) -> Log:
    columns = log.interactions
    ratings = columns.ratings
    return dataclasses.replace(
        log,
        interactions=dataclasses.replace(
            columns,
            users=columns.users[rows],
            items=columns.items[rows],
            timestamps=columns.timestamps[rows],
            ratings=None if ratings is None else ratings[rows],
        ),
    )


def _compare(
    config: TrainConfig,
    folder: pathlib.Path,
    num_epochs: int,
    learning_rate: float | None,
) -> str:
    """Trains all models and returns the table."""
    import recsys
    from recsys import extend
    from recsys.data.prepare import build_data
    from recsys.evaluation.run import OtherCatalog
    from recsys.training import train
    from recsys.workdir import Workdir

    def training_seconds(name: str, config: TrainConfig) -> float:
        run = train(config, folder / name, evaluate=False)
        return sum(epoch["seconds"] for epoch in run.history)

    def extended(name: str, *arguments: str) -> None:
        flags = [
            f"--workdir={folder / 'old'}",
            f"--data={folder / 'new-log'}",
            f"--output_workdir={folder / name}",
            f"--num_epochs={num_epochs}",
            *arguments,
        ]
        if learning_rate is not None:
            flags.append(f"--learning_rate={learning_rate}")
        if code := extend.COMMAND.run(extend.main, flags):
            raise SystemExit(code)

    train(config, folder / "old", evaluate=False)
    extended("rows", "--train=false")
    extended("extended")
    grown = Workdir(folder / "extended").read_config()
    anew = dataclasses.replace(
        config, **{name: getattr(grown, name) for name in SOURCE_FIELDS}
    )
    # The extension's run has ended: this reads what it measured.
    seconds = {
        name: training_seconds(name, each)
        for name, each in (("extended", grown), ("anew", anew))
    }

    data = build_data(grown)
    stale, *models = (
        recsys.load(folder / name) for name in ("old", "rows", *seconds)
    )
    known = set(stale.vocabulary.item_ids)
    rows = {
        "not extended": OtherCatalog(stale, stale.vocabulary, data.vocabulary),
        "new rows, not trained": models[0],
        f"extended, {num_epochs} epochs": models[1],
        f"trained anew, {config.num_epochs} epochs": models[2],
    }
    times = ["", "", *(f"{each:.0f}" for each in seconds.values())]
    return _table(rows, times, data, known, config)


def _table(
    recommenders: dict[str, Any],
    times: list[str],
    data: PreparedData,
    known: set[str],
    config: TrainConfig,
) -> str:
    """Returns what the models find, for all queries and for new items."""
    from recsys.evaluation import evaluate

    queries, _ = data.split.reported
    targets, offsets = queries.targets(np.arange(len(queries)))
    first = data.vocabulary.decode(targets[offsets[:-1]])
    new = np.flatnonzero([item not in known for item in first])
    lines = [
        f"{data.vocabulary.num_items:,} items, "
        f"{data.vocabulary.num_items - len(known):,} of them new; "
        f"{len(queries):,} queries, {len(new):,} for new items.\n",
        "| model | seconds of training | Recall@10 | NDCG@10 | "
        "Recall@10, new items |",
        "| --- | --- | --- | --- | --- |",
    ]
    for (name, recommender), seconds in zip(
        recommenders.items(), times, strict=True
    ):
        cells = []
        for asked, metrics in (
            (queries, ("recall@10", "ndcg@10")),
            (queries.select(new), ("recall@10",)),
        ):
            if not len(asked):
                cells.append("")
                continue
            found = evaluate(
                recommender,
                asked,
                protocol=data.split.protocol,
                ks=(10,),
                lists=False,
                exclude_history=config.excludes_history,
            ).metrics()
            cells += [f"{found[metric]:.4f}" for metric in metrics]
        lines.append(f"| {name} | {seconds} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
