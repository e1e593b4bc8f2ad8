"""Measures levers of training, each alone, on the validation queries.

Run it from the checkout:

    python scripts/ablations.py --preset=movielens-1m --data=ml-1m
    python scripts/ablations.py --lever=dropout=0.1 \
        --lever=embedding_dim=128,learning_rate=0.002

The base is the preset with the flags that are given; it is trained with every
one of `--seeds`, which shows how much is chance. A lever is one change to it,
of a field or of several that belong together, trained with `--lever_seeds`;
its difference is to the base of the same seeds. The test queries are never
read. Every run has a workdir of its own, so the same command goes on where it
was stopped; `ablations.json` and `ablations.md` hold what is finished.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from evaluate_movielens import parse_seeds

from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import FIELDS, SEEDED_SPLITS, TrainConfig, make_config
from recsys.data.prepare import PreparedData, build_data, choose
from recsys.errors import InputError
from recsys.files import write_json

DEFAULT_LEVERS = (
    "embedding_dim=32",
    "embedding_dim=64",
    "embedding_dim=128",
    "num_blocks=1",
    "num_blocks=2",
    "num_blocks=3",
    "num_heads=1",
    "num_heads=2",
    "dropout=0.1",
    "dropout=0.2",
    "dropout=0.3",
    "dropout=0.4",
    "weight_decay=0.01",
    "weight_decay=0.1",
    "learning_rate=0.001",
    "learning_rate=0.002",
    "learning_rate=0.004",
    "positions_per_batch=1600",
    "positions_per_batch=4000",
    "positions_per_batch=12800",
    "table_init=random",
    "table_init=co_occurrence",
    "warmup_steps=0",
    "warmup_steps=1000",
)
_METRICS = ("recall@10", "ndcg@10")

COMMAND = Command(
    "ablations",
    "Trains with one change at a time and prints what each brings on the "
    "validation queries.",
    ["scripts/ablations.py --lever=dropout=0.1 --lever=num_blocks=2"],
)
_FOLDER = "runs/ablations-<preset>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(
    list,
    "lever",
    "A change such as dropout=0.1, or several with commas between; may be "
    "repeated. Default: a list of common ones.",
    group="Run",
)
COMMAND.add_flag(
    str, "seeds", "Of the base, with commas.", group="Run", default="0,1,2"
)
COMMAND.add_flag(
    str, "lever_seeds", "Of each lever, among those.", group="Run", default="0"
)
add_config_flags(COMMAND)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training run found.

    Attributes:
        lever: The change, "" for the base.
        seed: The seed.
        metrics: Validation metrics of the best epoch, by name.
        best_epoch: That epoch, from 1.
        seconds: Training time of all epochs, without evaluations.
    """

    lever: str
    seed: int
    metrics: dict[str, float]
    best_epoch: int
    seconds: float


def main(values: dict[str, Any]) -> int:
    """Trains whatever is not trained yet, and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    base = make_config(values["preset"], given_fields(values))
    seeds = parse_seeds(values["seeds"])
    lever_seeds = parse_seeds(values["lever_seeds"])
    if not set(lever_seeds) <= set(seeds):
        raise InputError(
            f"--lever_seeds must be among --seeds={values['seeds']}. "
            f"Received: {values['lever_seeds']}"
        )
    workdir = run_folder(values, _FOLDER)
    # Otherwise each seed has a split of its own, which its runs read anew.
    is_same = base.split not in SEEDED_SPLITS
    data = build_data(base) if is_same else None
    base, _ = choose(base, data or build_data(base))
    configs = apply_levers(base, values["lever"])
    load_tensorflow()
    runs: list[Run] = []
    for lever, config in {"": base, **configs}.items():
        for seed in lever_seeds if lever else seeds:
            print(f"{lever or 'base'}, seed {seed}", file=sys.stderr)
            runs.append(_train(lever, config, seed, data, workdir))
            _write(workdir, base, runs)
    print(markdown(runs))
    return 0


def apply_levers(
    base: TrainConfig, levers: Sequence[str] | None
) -> dict[str, TrainConfig]:
    """Makes the configuration of each lever.

    Args:
        base: What is changed.
        levers: Each `field=value`, or several with commas between. None
            takes those of `DEFAULT_LEVERS` that change the base and fit it.

    Returns:
        The changed configurations by lever.

    Raises:
        InputError: A field is unknown or no lever, or a value is out of
            range or the base's own.
    """
    parser = Command("lever", "", [])
    names = {
        name
        for name, info in FIELDS.items()
        if info.group in ("Model", "Optimization") and name != "seed"
    }
    add_config_flags(parser, names)
    configs = {}
    for lever in DEFAULT_LEVERS if levers is None else levers:
        try:
            fields = parser.parse([f"--{part}" for part in lever.split(",")])
            config = dataclasses.replace(base, **given_fields(fields))
            if config == base:
                raise InputError("it changes nothing")
        except InputError as error:
            if levers is None:
                continue
            raise InputError(
                f"--lever must change fields of the model or its "
                f"optimization, such as dropout=0.1. Received: {lever!r} "
                f"({error})"
            ) from error
        configs[lever] = config
    return configs


def _train(
    lever: str,
    config: TrainConfig,
    seed: int,
    data: PreparedData | None,
    workdir: pathlib.Path,
) -> Run:
    """Trains one configuration, or reads what its finished run found."""
    from recsys.training import train

    result = train(
        dataclasses.replace(config, seed=seed),
        workdir / (lever or "base") / f"seed-{seed}",
        data=data,
        evaluate=False,
    )
    best = result.history[result.best_epoch]
    return Run(
        lever=lever,
        seed=seed,
        metrics={name: best[f"validation_{name}"] for name in _METRICS},
        best_epoch=result.best_epoch + 1,
        seconds=sum(epoch["seconds"] for epoch in result.history),
    )


def markdown(runs: Sequence[Run]) -> str:
    """Lays out the runs, means over seeds, as a table in Markdown.

    Args:
        runs: Those of the base first.

    Returns:
        A sentence about the base's spread, and the table.
    """
    base = {run.seed: run for run in runs if not run.lever}
    lines = [
        "| lever | recall@10 | difference | ndcg@10 | difference "
        "| best epoch | minutes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for lever in dict.fromkeys(run.lever for run in runs):
        members = [run for run in runs if run.lever == lever]
        cells = [f"`{lever}`" if lever else "base"]
        for name in _METRICS:
            cells.append(f"{_mean(members, name):.4f}")
            same_seeds = [base[run.seed] for run in members]
            difference = _mean(members, name) - _mean(same_seeds, name)
            cells.append(f"{difference:+.4f}" if lever else "")
        epochs = sorted({run.best_epoch for run in members})
        cells.append("-".join(map(str, {epochs[0]: 0, epochs[-1]: 0})))
        minutes = np.mean([run.seconds for run in members]) / 60
        cells.append(f"{minutes:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return f"{_spread(list(base.values()))}\n\n" + "\n".join(lines)


def _spread(base: list[Run]) -> str:
    """Says how far the base's seeds lie apart."""
    plural = "s" if len(base) > 1 else ""
    text = f"Validation queries; base: {len(base)} seed{plural}"
    if len(base) < 2:
        return f"{text}."
    spreads = (
        f"{name} {np.std([run.metrics[name] for run in base], ddof=1):.4f}"
        for name in _METRICS
    )
    return f"{text}, standard deviation {', '.join(spreads)}."


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([run.metrics[name] for run in runs]))


def _write(workdir: pathlib.Path, base: TrainConfig, runs: list[Run]) -> None:
    """Writes what is finished, as JSON and as Markdown."""
    write_json(
        workdir / "ablations.json",
        {
            "base": base.to_dict(),
            "runs": [dataclasses.asdict(run) for run in runs],
        },
    )
    (workdir / "ablations.md").write_text(markdown(runs) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
