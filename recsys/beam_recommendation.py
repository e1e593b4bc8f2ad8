"""Recommendations for all users of a log, on any runner of Apache Beam."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

import recsys
from recsys import histories
from recsys.config import TrainConfig
from recsys.data import beam_preparation, shards
from recsys.data.prepare import user_histories
from recsys.data.sequences import Sequences
from recsys.errors import InputError
from recsys.histories import Summary
from recsys.reranking import Rules
from recsys.workdir import Workdir

if TYPE_CHECKING:
    from recsys.recommender import Recommender

# Readers of a folder of Parquet files ignore names that begin so.
_SUMMARY = "_summary.json"


def recommend(
    workdir: pathlib.Path,
    config: TrainConfig,
    output: str,
    k: int,
    *,
    beam_options: Sequence[str],
    exclude_history: bool = True,
    rules: Rules | None = None,
    context: Mapping[str, Any] | None = None,
) -> Summary:
    """Recommends for all users of a folder of shards, on Apache Beam.

    Every worker must reach the workdir and the shards under the same names,
    and holds the model and the users of a shard in memory.

    Args:
        workdir: The folder of the model.
        config: Its configuration; `data` is the folder of the shards.
        output: A new or empty folder, on any file system that Beam supports.
            It gets a file for each shard, in the format of the folder's
            suffix; see `recsys.histories.recommend_file`.
        k: How many items for each user, at most.
        beam_options: The runner and its options, as Beam's flags.
        exclude_history: Whether items of a history are excluded.
        rules: Which items may be recommended, and in which order.
        context: As for `recsys.histories.recommend_file`.

    Returns:
        What was found.

    Raises:
        InputError: The folder is not empty, or the log is not in shards.
    """
    began = time.perf_counter()
    if not shards.is_sharded(config.data):
        raise InputError(
            "--runner needs a model trained on shards (see "
            f"recsys.prepare_shards). Received: one trained on {config.data}"
        )
    beam_preparation.check_new(output)
    folder = pathlib.Path(config.data).expanduser().absolute()
    manifest = shards.read_manifest(folder)
    answer = functools.partial(
        _answer_shard,
        workdir=workdir.absolute(),
        config=dataclasses.replace(config, data=str(folder)),
        output=output,
        arguments=(k, exclude_history, rules, context),
    )
    with (
        beam_preparation.input_errors(),
        beam.Pipeline(options=PipelineOptions(list(beam_options))) as root,
    ):
        _ = (
            root
            | "Shards" >> beam.Create(range(len(manifest.num_users)))
            | "Spread" >> beam.Reshuffle()
            | "Recommend" >> beam.Map(answer)
            | "Add up" >> beam.CombineGlobally(_total)
            | "Write summary" >> beam.Map(_write_summary, output)
        )
    with FileSystems.open(FileSystems.join(output, _SUMMARY)) as stream:
        summary = Summary(**json.loads(stream.read()))
    summary.seconds = time.perf_counter() - began
    return summary


@functools.lru_cache(maxsize=1)
def _load(
    workdir: pathlib.Path, config: TrainConfig
) -> tuple[Recommender, list[Callable[[], Sequences]]]:
    """Loads a model and finds its users, once in each worker."""
    loaded = recsys.recommender.restore(Workdir(workdir))
    return loaded, user_histories(config, loaded.vocabulary)


def _answer_shard(
    shard: int,
    workdir: pathlib.Path,
    config: TrainConfig,
    output: str,
    arguments: tuple[int, bool, Rules | None, Mapping[str, Any] | None],
) -> Summary:
    recommender, parts = _load(workdir, config)
    suffix = pathlib.PurePath(output).suffix or ".jsonl"
    name = f"{shard:05d}{suffix}"
    with beam_preparation.create(output, name) as out:
        return histories.write(
            out, suffix, recommender, [parts[shard]], *arguments
        )


def _total(summaries: Iterable[Summary]) -> Summary:
    rows = map(dataclasses.astuple, summaries)
    none = dataclasses.astuple(Summary())
    return Summary(*map(sum, zip(none, *rows, strict=True)))


def _write_summary(summary: Summary, output: str) -> None:
    with beam_preparation.create(output, _SUMMARY) as out:
        out.write(json.dumps(dataclasses.asdict(summary)).encode())
