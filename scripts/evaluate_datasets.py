"""The defaults on public logs, beside the best published dot product.

Run it from the checkout; `PATH` is a folder of logs, each a folder or a file
by the name of the set:

    python scripts/evaluate_datasets.py --folder=PATH
    python scripts/evaluate_datasets.py --folder=PATH --names=lastfm --seeds=0

Each log is trained with no flag but its path, so that `--preset=auto` chooses
(the bundled log has a preset of its own), by scripts/evaluate_movielens.py's
functions: a run that is there is resumed or left as it is, and the test queries
are read after the last seed is trained. The results are written into
`<workdir>/datasets.json` and, as a table, `<workdir>/datasets.md` after each
log.

Published: SASRec with 3,000 negatives (antklen/sasrec-bert4rec-recsys23) for
ml-1m, BSARec (yehjin-shin/BSARec) for amazon-beauty and lastfm, all on the
preprocessed logs of the literature and with this protocol: each user's last
item among all items, those of the history excluded.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
from evaluate_movielens import (
    mean_and_spread,
    parse_seeds,
    test_runs,
    train_seed,
)
from measuring import machine

from recsys.command_line import Command, load_tensorflow
from recsys.config import DEFAULTS, make_config, parse_names
from recsys.errors import InputError
from recsys.files import atomic_path, write_json

COMMAND = Command(
    "evaluate_datasets",
    "Trains the defaults on public logs, and writes a table of the results.",
    ["scripts/evaluate_datasets.py --folder=data --names=ml-100k,lastfm"],
)
COMMAND.add_flag(
    pathlib.Path, "folder", "The folder that holds the logs.", group="Run"
)
COMMAND.add_flag(
    str, "names", "Which of them, with commas between.", group="Run"
)
COMMAND.add_flag(
    str, "seeds", "With commas between.", group="Run", default="0,1,2"
)
COMMAND.add_flag(
    pathlib.Path,
    "workdir",
    "Folder of the runs and the results.",
    group="Run",
    default="runs/datasets",
)

BUNDLED = DEFAULTS["data"]
# Recall@10 and NDCG@10 of the best published dot product.
PUBLISHED: dict[str, tuple[float, float] | None] = {
    BUNDLED: None,
    "ml-100k": None,
    "lastfm": (0.0807, 0.0435),
    "amazon-beauty": (0.1008, 0.0611),
    "ml-1m": (0.3159, 0.1857),
}
_METRICS = ("recall@10", "ndcg@10")


def main(values: dict[str, Any]) -> int:
    """Trains, evaluates and writes.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    names = parse_names(values["names"]) or tuple(PUBLISHED)
    if wrong := [name for name in names if name not in PUBLISHED]:
        raise InputError(
            f"--names must be among {', '.join(PUBLISHED)}. Received: "
            f"{wrong[0]}"
        )
    logs = {name: _log(values["folder"], name) for name in names}
    seeds = parse_seeds(values["seeds"])
    workdir = pathlib.Path(values["workdir"]).expanduser()
    workdir.mkdir(parents=True, exist_ok=True)
    load_tensorflow()
    found: dict[str, Any] = {}
    for name, log in logs.items():
        config = make_config(None, {} if name == BUNDLED else {"data": log})
        runs = [train_seed(config, seed, workdir / name) for seed in seeds]
        rows, table = test_runs(config, runs)
        print(f"\n{name}\n\n{table}")
        minutes = [sum(e["seconds"] for e in run.history) / 60 for run in runs]
        found[name] = {"rows": rows, "minutes": minutes}
        write_json(
            workdir / "datasets.json",
            {"machine": machine(), "seeds": seeds, "logs": found},
        )
        with atomic_path(workdir / "datasets.md") as path:
            path.write_text(_markdown(found, len(seeds)), "utf-8")
    print("\n" + _markdown(found, len(seeds)))
    return 0


def _log(folder: pathlib.Path | None, name: str) -> str:
    """Returns the path of a log."""
    if name == BUNDLED:
        return name
    path = pathlib.Path(folder or "").expanduser() / name
    if folder is None or not path.exists():
        raise InputError(
            f"--folder must hold the log {name}; leave it out with --names. "
            f"Received: {folder}"
        )
    return str(path)


def _markdown(found: dict[str, Any], num_seeds: int) -> str:
    lines = [
        f"| log | Recall@10 / NDCG@10, mean of {num_seeds} | published | "
        "minutes |",
        "| --- | --- | --- | --- |",
    ]
    for name, result in found.items():
        cells = []
        for metric in _METRICS:
            values = [row[metric] for row in result["rows"]]
            mean, spread = mean_and_spread(values)
            more = f" ± {spread:.4f}" if num_seeds > 1 else ""
            cells.append(f"{mean:.4f}{more}")
        published = PUBLISHED[name]
        beside = ""
        if published is not None:
            beside = " / ".join(f"{value:.4f}" for value in published)
        lines.append(
            f"| {name} | {' / '.join(cells)} | {beside} | "
            f"{np.mean(result['minutes']):.1f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
