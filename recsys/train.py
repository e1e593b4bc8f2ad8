"""`python -m recsys.train`: a log in, a trained model and its results out."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import TrainConfig, make_config
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.data.vocabulary import Vocabulary
    from recsys.training.trainer import TrainResult

COMMAND = Command(
    "recsys.train",
    "Trains a two-tower model and compares it with baselines. Without flags: "
    "on the bundled MovieLens data, into runs/movielens-small. The same "
    "command again goes on with a run that was stopped.",
    [
        "python -m recsys.train",
        "python -m recsys.train --preset=movielens-1m --data=ml-1m.zip",
        "python -m recsys.train --data=log.csv --workdir=runs/mine",
    ],
    interrupted="stopped; the same command goes on from the last checkpoint",
)
_FOLDER = "runs/<preset>"
add_run_flags(
    COMMAND, _FOLDER, "Where the model, its checkpoints and its results go."
)
add_config_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and says what to do next.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    config = make_config(values["preset"], given_fields(values))
    _train_and_report(config, run_folder(values, _FOLDER))
    return 0


def _train_and_report(config: TrainConfig, workdir: pathlib.Path) -> None:
    # What needs no TensorFlow comes first, so that mistakes are told at once.
    from recsys.data.prepare import build_data, describe
    from recsys.training.cluster import cluster_of
    from recsys.workdir import Workdir

    folder = Workdir(workdir)
    cluster = cluster_of(config)
    is_chief = cluster is None or cluster.is_chief
    if is_chief:
        folder.check(config)
    data = build_data(config)
    if is_chief:
        folder.check_data(data.vocabulary)
        print(describe(data), flush=True)
    load_tensorflow()

    from recsys.training.trainer import train

    result = train(config, workdir, data=data)
    if not is_chief:
        return
    _report(config, result)
    print(_next_commands(workdir, data.vocabulary))


def _report(config: TrainConfig, result: TrainResult) -> None:
    """Reads the test queries, for the first time, and shows the results."""
    from recsys import recommender
    from recsys.evaluation.comparison import (
        compare_with_baselines,
        write_metrics,
    )
    from recsys.workdir import Workdir

    data = result.data
    results = compare_with_baselines(
        recommender.load(result.workdir),
        data.split,
        data.vocabulary.size,
        exclude_history=config.excludes_history,
    )
    write_metrics(
        Workdir(result.workdir).metrics,
        results,
        data=data.name,
        best_epoch=result.best_epoch + 1,
        training=result.history,
    )
    print(f"\n{results.table()}\n")


def _next_commands(workdir: pathlib.Path, vocabulary: Vocabulary) -> str:
    """Names the workdir and the commands that make use of it."""
    flag = f"--workdir={shlex.quote(str(workdir))}"
    history = " ".join(
        f"--history={shlex.quote(name)}" for name in _example(vocabulary)
    )
    logs = shlex.quote(str(workdir / "logs"))
    return "\n".join(
        [
            f"The model and its results are in {workdir}. Next:",
            f"  python -m recsys.evaluate {flag}",
            f"  python -m recsys.recommend {flag} {history}",
            f"  tensorboard --logdir={logs}",
        ]
    )


def _example(vocabulary: Vocabulary, length: int = 2) -> list[str]:
    """Returns a history of frequent items, as a person would name them."""
    from recsys.data.prepare import TRAIN_COUNT
    from recsys.ids import FIRST_ITEM_INDEX

    counts = vocabulary.items.column(TRAIN_COUNT).to_numpy()
    names = []
    for row in (-counts).argsort(kind="stable")[:length]:
        index = int(row) + FIRST_ITEM_INDEX
        name = vocabulary.describe(index)
        try:
            is_clear = vocabulary.find(name) == index
        except InputError:
            is_clear = False
        names.append(name if is_clear else vocabulary.item_ids[row])
    return names


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
