"""What features of events, time, requests and users are worth, and cost.

Run it from the checkout:

    python scripts/evaluate_features.py --data=ml-100k
    python scripts/evaluate_features.py --data=ml-1m-times.csv \
        --variants=base,all --seeds=0 --embedding_dim=64 --num_epochs=10
    python scripts/evaluate_features.py --part=cold_users --data=ml-100k
    python scripts/evaluate_features.py --part=cost --data=ml-100k

`--part=accuracy` trains each variant with each seed into a workdir of its own,
`<workdir>/<variant>-<seed>`; a run that is there is resumed or left as it is.
Training looks at the validation queries only, whose metrics are those of the
best epoch; the test queries are read here, once for each run. Where the log has
times, NDCG@10 is also given by the time between the last event and the target.
`--item_features` names what the variant `items` reads of the items.
`--shuffle_ties` first writes a copy of the log in which events of one user at
one time are in random order: what is left there is no artifact of the file.

`--part=cold_users` holds out whole users and asks for their first item by what
is known of them alone, beside the most popular items, and those with which most
users begin. Items that tie with the asked one rank behind it.

`--part=cost` times training steps, and requests one by one, with and without
all features, in turn.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from evaluate_movielens import mean_and_spread, parse_seeds
from measuring import machine

from recsys.command_line import (
    Command,
    add_config_flags,
    add_run_flags,
    given_fields,
    load_tensorflow,
    run_folder,
)
from recsys.config import TrainConfig, make_config, parse_names
from recsys.data.prepare import build_data, choose, read_log
from recsys.errors import InputError
from recsys.evaluation.results import aligned
from recsys.files import write_json

COMMAND = Command(
    "evaluate_features",
    "Trains with and without features, and compares accuracy or cost.",
    ["scripts/evaluate_features.py --data=ml-100k --seeds=0,1,2"],
)
_FOLDER = "runs/features-<preset>"
add_run_flags(COMMAND, _FOLDER)
COMMAND.add_flag(
    str,
    "part",
    "What to measure: accuracy, cold_users or cost.",
    group="Run",
    default="accuracy",
)
COMMAND.add_flag(
    str, "seeds", "With commas between.", group="Run", default="0,1,2"
)
COMMAND.add_flag(
    str,
    "variants",
    "Which of base, gaps, ratings, users, request, items (with "
    "--item_features) and all to train. Default: those that the log allows.",
    group="Run",
)
COMMAND.add_flag(
    bool,
    "shuffle_ties",
    "Put events of one user at one time into random order.",
    group="Run",
    default=False,
)
add_config_flags(COMMAND)

_METRICS = ("recall@10", "ndcg@10")
_NUM_BATCHES = 40
# The end of each slice, in seconds between the last event and the target.
_SLICES = {"0 s": 0, "1-60 s": 60, "longer": None}


def main(values: dict[str, Any]) -> int:
    """Measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    parts: dict[str, Callable[..., dict[str, Any]]] = {
        "accuracy": _accuracy,
        "cold_users": _cold_users,
        "cost": _cost,
    }
    if values["part"] not in parts:
        raise InputError(
            f"--part must be one of {', '.join(parts)}. Received: "
            f"{values['part']!r}"
        )
    seeds = parse_seeds(values["seeds"])
    config = make_config(values["preset"], given_fields(values))
    workdir = run_folder(values, _FOLDER)
    workdir.mkdir(parents=True, exist_ok=True)
    load_tensorflow()
    if values["shuffle_ties"]:
        config = dataclasses.replace(config, data=_shuffled(config, workdir))
    variants = _variants(config)
    config = dataclasses.replace(config, item_features=None)
    if values["variants"] is not None:
        names = parse_names(values["variants"])
        wrong = [name for name in names if name not in variants]
        if wrong or not names:
            raise InputError(
                f"--variants must be among {', '.join(variants)}. Received: "
                f"{wrong[0] if wrong else 'none'}"
            )
        variants = {name: variants[name] for name in names}
    found = parts[values["part"]](config, variants, seeds, workdir)
    found |= {"machine": machine(), "config": config.to_dict()}
    write_json(workdir / f"{values['part']}.json", found)
    return 0


def _variants(config: TrainConfig) -> dict[str, dict[str, str]]:
    """Returns the fields of each variant that the log allows."""
    log = read_log(dataclasses.replace(config, user_features="auto"))
    per_second = log.interactions.timestamps_per_second
    times = log.interactions.timestamps
    are_dates = per_second > 1 or 1e8 <= times.min() <= times.max() <= 1e10
    clock = "gap,hour,weekday" if are_dates else "gap"
    found: dict[str, dict[str, str]] = {"base": {}}
    if per_second:
        found["gaps"] = {"time_features": "gap,age"}
    if log.interactions.ratings is not None:
        found["ratings"] = {"event_features": "rating"}
    if log.users is not None:
        found["users"] = {"user_features": "auto"}
    if per_second:
        found["request"] = {"context_features": clock}
    if config.item_features is not None:
        found["items"] = {"item_features": config.item_features}
    every = {n: text for each in found.values() for n, text in each.items()}
    return {**found, "all": every}


def _shuffled(config: TrainConfig, workdir: pathlib.Path) -> str:
    """Writes a copy of the log with ties in random order; returns its path."""
    path = workdir / "shuffled.csv"
    if path.is_file():
        return str(path)
    log = read_log(config).interactions
    order = np.random.default_rng(0).permutation(len(log))
    columns = {
        "user": log.user_ids[log.users],
        "item": log.item_ids[log.items],
        "timestamp": log.timestamps,
    }
    if log.ratings is not None:
        columns["rating"] = log.ratings
    table = pa.table({n: pa.array(x[order]) for n, x in columns.items()})
    pa_csv.write_csv(table, path)
    return str(path)


def _accuracy(
    config: TrainConfig,
    variants: dict[str, dict[str, str]],
    seeds: list[int],
    workdir: pathlib.Path,
) -> dict[str, Any]:
    import recsys
    from recsys.evaluation import evaluate
    from recsys.training import train

    rows: dict[str, list[dict[str, float]]] = {}
    for name, fields in variants.items():
        rows[name] = []
        for seed in seeds:
            run = train(
                dataclasses.replace(config, seed=seed, **fields),
                workdir / f"{name}-{seed}",
                evaluate=False,
            )
            best = run.history[run.best_epoch]
            row = {n: best[f"validation_{n}"] for n in _METRICS}
            row = {f"validation {n}": value for n, value in row.items()}
            queries = run.data.split.reported[0]
            found = evaluate(
                recsys.load(run.workdir),
                queries,
                protocol=run.data.split.protocol,
                exclude_history=config.excludes_history,
                lists=False,
            )
            row |= {n: found.metrics()[n] for n in _METRICS}
            row |= _by_gap(found, queries)
            rows[name].append(row)
            print(name, seed, {n: round(v, 4) for n, v in row.items()})
    header = ["variant", *rows[next(iter(rows))][0]]
    table = [
        [
            name,
            *(_mean([row.get(n, np.nan) for row in found]) for n in header[1:]),
        ]
        for name, found in rows.items()
    ]
    print(aligned(header, table))
    return {"seeds": seeds, "rows": rows}


def _by_gap(found: Any, queries: Any) -> dict[str, float]:
    """Returns NDCG@10 by the time from the last event to the target."""
    times = queries.sequences.timestamps
    per_second = queries.sequences.timestamps_per_second
    if not per_second:
        return {}
    gaps = times[queries.history_ends] - times[queries.history_ends - 1]
    gaps = gaps / per_second
    ndcg = found.per_query()["ndcg@10"]
    rows, begin = {}, -1
    for name, end in _SLICES.items():
        chosen = (gaps > begin) & (gaps <= (np.inf if end is None else end))
        if chosen.any():
            share = f"{chosen.mean():.0%}"
            rows[f"ndcg@10 {name} ({share})"] = float(ndcg[chosen].mean())
        begin = end or 0
    return rows


def _mean(values: list[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.4f}" + f" ± {spread:.4f}" * (len(values) > 1)


def _cold_users(
    config: TrainConfig,
    variants: dict[str, dict[str, str]],
    seeds: list[int],
    workdir: pathlib.Path,
) -> dict[str, Any]:
    import recsys
    from recsys.data.side_information import history_side
    from recsys.training import train

    if "users" not in variants:
        raise InputError(
            "--part=cold_users needs a log with a users file. Received: "
            f"{config.data} without one"
        )
    kinds = ("popularity", "first items", "users")
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for seed in seeds:
        run = train(
            dataclasses.replace(
                config,
                seed=seed,
                split="held_out_users",
                **variants["users"],
            ),
            workdir / f"cold-{seed}",
            evaluate=False,
        )
        model = recsys.load(run.workdir)
        queries = run.data.split.reported[0]
        starts = queries.sequences.offsets[queries.users]
        first = queries.sequences.items[starts]
        none = np.zeros(len(queries) + 1, np.int64)
        assert model.side is not None  # The variant has features.
        side = history_side(
            model.side,
            queries.sequences,
            starts,
            starts,
            queries.users,
            are_followed=False,
        )
        scores = model.user_vectors(none[:0], none, side)
        scores = scores @ model.item_vectors().T
        known = run.data.split.train.read_all()
        begins = known.items[known.offsets[:-1][known.lengths > 0]]
        begun = np.bincount(begins, minlength=len(model.popularity))
        popular, common = (
            np.tile(counts.astype(np.float64), (len(first), 1))
            for counts in (model.popularity, begun)
        )
        for name, each in zip(kinds, (popular, common, scores), strict=True):
            each[:, :2] = -np.inf
            asked = each[np.arange(len(first)), first][:, np.newaxis]
            ranks = (each > asked).sum(axis=1)
            rows[name].append(
                {
                    "recall@10": float((ranks < 10).mean()),
                    "ndcg@10": float(
                        np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean()
                    ),
                    "queries": len(first),
                }
            )
    header = ["first item by", *_METRICS]
    table = [
        [name, *(_mean([row[n] for row in found]) for n in _METRICS)]
        for name, found in rows.items()
    ]
    print(f"{rows['users'][0]['queries']} users without history, seed by seed")
    print(aligned(header, table))
    return {"seeds": seeds, "rows": rows}


def _cost(
    config: TrainConfig,
    variants: dict[str, dict[str, str]],
    seeds: list[int],
    workdir: pathlib.Path,
) -> dict[str, Any]:
    from recsys.recommender import Recommender
    from recsys.training.trainer import Trainer
    from recsys.workdir import Workdir

    steps, requests = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("base", "all"):
            fields = variants[name]
            data = build_data(dataclasses.replace(config, **fields))
            chosen, _ = choose(dataclasses.replace(config, **fields), data)
            trainer = Trainer(
                chosen,
                Workdir(pathlib.Path(folder) / name),
                data,
                verbose=False,
            )
            batches = list(itertools.islice(trainer.batches(0), _NUM_BATCHES))
            steps[name] = (trainer.train_step, batches)
            model = Recommender(
                trainer.model,
                data.vocabulary,
                chosen.max_history_length,
                side=trainer.side,
            )
            requests[name] = (model, data.split.validation)
        times = _alternately(
            steps, lambda run, i: run[0](run[1][i % len(run[1])])
        )

        def ask(run: Any, i: int) -> None:
            model, queries = run
            rows = np.array([i % len(queries)])
            items, offsets = queries.histories(rows)
            side = model.side_of_queries(queries, rows)
            model.recommend_indices(items, offsets, 10, side=side)

        asked = _alternately(requests, ask)
    rows = {}
    for what, found in (("training step", times), ("request", asked)):
        ratio = statistics.median(
            x / y for x, y in zip(found["all"], found["base"], strict=True)
        )
        base, every = (statistics.median(found[n]) for n in ("base", "all"))
        rows[what] = {"base_ms": base, "all_ms": every, "ratio": ratio}
        print(
            f"{what}: {base:.1f} ms without features, {every:.1f} ms with all; "
            f"{ratio:.2f} times as long (median of pairs)"
        )
    return rows


def _alternately(
    runs: dict[str, Any], call: Callable[[Any, int], None]
) -> dict[str, list[float]]:
    """Returns milliseconds of 80 calls of each, after 20 to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(100):
        for name, run in runs.items():
            began = time.perf_counter()
            call(run, i)
            if i >= 20:
                times[name].append(1000 * (time.perf_counter() - began))
    return times


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
