"""Runs other libraries on our split, in an environment of their own."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import tempfile
from typing import Any

import numpy as np

from recsys.data.prepare import PreparedData
from recsys.data.splits import Queries
from recsys.errors import InputError
from recsys.evaluation import query_ids, read_rankings
from recsys.ids import FIRST_ITEM_INDEX
from recsys.metrics import parse_metric

METRICS = ("recall@10", "ndcg@10")
PEERS = ("sasrec", "als")
_SCRIPT = pathlib.Path(__file__).with_name("benchmark_peers.py")
INSTALL = "pip install torch==2.13.0 'rectools[torch]==0.19.0'"


def check_peers(python: str) -> None:
    """Checks that an interpreter can run the other libraries.

    Args:
        python: The interpreter.

    Raises:
        InputError: It is none, or its environment lacks a package.
    """
    for model in PEERS:
        try:
            process = _run(python, "--check", f"--model={model}")
        except OSError as error:
            raise InputError(
                "--peers must be a Python interpreter in whose environment "
                f"`{INSTALL}` has run. Received: {python!r} "
                f"({error.strerror})"
            ) from error
        if process.returncode:
            raise InputError(
                "--peers must be a Python interpreter in whose environment "
                f"`{INSTALL}` has run. Received: {python!r}, which lacks "
                f"{_last_line(process.stderr)}"
            )


def run_peers(
    python: str, data: PreparedData, *, epochs: int, dim: int
) -> list[dict[str, Any]]:
    """Trains each of the other libraries' models and scores its lists.

    Each is a process of its own, so that memory is its own too.

    Args:
        python: An interpreter that `check_peers` accepts.
        data: The log and its split, with test queries.
        epochs: Epochs of the models that are trained by epochs.
        dim: Length of the vectors.

    Returns:
        What was measured of each model, with its test metrics.

    Raises:
        InputError: A run failed.
    """
    queries = data.split.test
    assert queries is not None  # The caller has asked for them before.
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write_split(data, queries, folder / "split.npz")
        for model in PEERS:
            process = _run(
                python,
                f"--model={model}",
                f"--folder={folder}",
                f"--epochs={epochs}",
                f"--dim={dim}",
            )
            if process.returncode:
                raise InputError(
                    f"--peers={python}: {model} failed. Received: "
                    f"{_last_line(process.stderr)}"
                )
            measured = json.loads((folder / f"{model}.json").read_text("utf-8"))
            evaluation = read_rankings(
                folder / f"{model}.jsonl",
                queries,
                data.vocabulary,
                protocol=data.split.protocol,
                ks=(10,),
            )
            metrics = evaluation.metrics([parse_metric(m) for m in METRICS])
            rows.append({**measured, **metrics})
    return rows


def write_split(
    data: PreparedData, queries: Queries, path: pathlib.Path
) -> None:
    """Writes what a peer needs, items counted from 0, ids as text.

    Row r of the training part and of the histories belongs to query r, so
    that users who are asked nothing are at the end of the training part.
    """
    train = data.split.train
    others = np.setdiff1d(np.arange(train.num_users), queries.users)
    users = np.concatenate([queries.users, others])
    lengths = train.lengths[users]
    rows = [
        train.items[train.offsets[user] : train.offsets[user + 1]]
        for user in users
    ]
    histories, offsets = queries.histories(np.arange(len(queries)))
    np.savez(
        path,
        train_items=np.concatenate(rows) - FIRST_ITEM_INDEX,
        train_offsets=np.append(0, np.cumsum(lengths)),
        history_items=histories - FIRST_ITEM_INDEX,
        history_offsets=offsets,
        query_ids=query_ids(queries).astype(str),
        item_ids=np.array(data.vocabulary.item_ids).astype(str),
    )


def peers_table(
    ours: dict[str, Any], peers: list[dict[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Lays out ours beside the peers, with ratios.

    Args:
        ours: What was measured of ours, by the keys of the peers' rows.
        peers: The peers' rows.

    Returns:
        The header and the rows. A ratio says how many times ours is faster;
        a dash stands for a model that learns no next items.
    """
    header = [
        "model",
        "epochs",
        "training, s",
        "s/epoch",
        "interactions/s",
        "ratio",
        "recommend, s",
        "ratio",
        "memory, GB",
        *METRICS,
    ]
    our_rate = ours["interactions per epoch"] / ours["seconds per epoch"]
    rows = []
    for row in (ours, *peers):
        rate, ratio = "-", "-"
        if row["interactions per epoch"] is not None:
            each = row["interactions per epoch"] / row["seconds per epoch"]
            rate, ratio = f"{each:,.0f}", f"{our_rate / each:.2f}"
        faster = row["recommend seconds"] / ours["recommend seconds"]
        rows.append(
            [
                row["name"],
                str(row["epochs"]),
                f"{row['training seconds']:.1f}",
                f"{row['seconds per epoch']:.1f}",
                rate,
                ratio,
                f"{row['recommend seconds']:.2f}",
                f"{faster:.2f}",
                f"{row['resident memory, GB']:.2f}",
                *(f"{row[metric]:.4f}" for metric in METRICS),
            ]
        )
    return header, rows


def _run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(_SCRIPT), *arguments],
        # What our own environment is told is not meant for that one.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
