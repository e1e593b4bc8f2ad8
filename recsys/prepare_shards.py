"""`python -m recsys.prepare_shards`: a log in, a folder of shards out."""

from __future__ import annotations

import pathlib
import shlex
import sys
from typing import TYPE_CHECKING, Any

from recsys.command_line import Command, add_config_flags
from recsys.config import HELD_OUT_BY_USER, SOURCE_FIELDS
from recsys.errors import InputError

if TYPE_CHECKING:
    from recsys.data.shard_preparation import Options
    from recsys.data.shards import Manifest
    from recsys.data.sources import Source

COMMAND = Command(
    "recsys.prepare_shards",
    "Prepares a log that does not fit in memory: filters, splits and sorts it "
    "into shards, a folder that recsys.train takes as --data. Runs on the "
    "cores of this machine, or with --runner on any runner of Apache Beam.",
    [
        "python -m recsys.prepare_shards --data=logs/ --output=shards",
        "python -m recsys.train --data=shards --table_init=random \\\n"
        "      --workdir=runs/large",
        "python -m recsys.prepare_shards --data=/mnt/logs \\\n"
        "      --output=gs://bucket/shards --runner=DataflowRunner \\\n"
        "      --beam=--project=… --beam=--region=…",
    ],
)
add_config_flags(COMMAND, [*SOURCE_FIELDS, "min_rating", "repeats"])
COMMAND.add_flag(
    str,
    "split",
    f"What is held out: {', '.join(HELD_OUT_BY_USER)}, the splits that look "
    "at one user at a time. Default: leave_last_out.",
    group="Data",
)
COMMAND.add_flag(
    str,
    "output",
    "The folder that gets the shards: new or empty.",
    group="Shards",
)
COMMAND.add_flag(
    int,
    "num_shards",
    "How many shards: a million interactions are a good size of one. It is "
    "in the memory of one process while it is made.",
    group="Shards",
    default=64,
)
COMMAND.add_flag(
    int,
    "num_queries",
    "How many users validate and test, drawn by a hash of their ids; 0: all.",
    group="Shards",
    default=10_000,
)
COMMAND.add_flag(
    int,
    "num_workers",
    "Processes on this machine. Default: one for each core.",
    group="Execution",
)
COMMAND.add_flag(
    str,
    "runner",
    "A runner of Apache Beam, such as DirectRunner, DataflowRunner, "
    "FlinkRunner or SparkRunner (extra [beam]), in place of this machine.",
    group="Execution",
)
COMMAND.add_flag(
    list,
    "beam",
    "An option of the runner, such as --beam=--direct_num_workers=2; repeated.",
    group="Execution",
)


def main(values: dict[str, Any]) -> int:
    """Prepares shards and says what to do with them.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    from recsys.data import sources
    from recsys.data.shard_preparation import Options

    output = values["output"]
    if not output:
        raise InputError("--output must name a folder. Received: none")
    if not values["data"]:
        raise InputError("--data must name a log. Received: none")
    given = {
        name: values[name]
        for name in ("split", "min_rating", "repeats")
        if values[name] is not None
    }
    options = Options(
        num_shards=values["num_shards"],
        num_queries=values["num_queries"],
        **given,
    )
    source = sources.Source(**{name: values[name] for name in SOURCE_FIELDS})
    if values["runner"] is None:
        manifest = _on_this_machine(values, source, options)
    else:
        manifest = _with_beam(values, source, options)
    print(manifest.summary())
    flags = "".join(f" --{name}={value}" for name, value in given.items())
    print(
        f"Next:\n  python -m recsys.train --data={shlex.quote(output)}{flags} "
        "--table_init=random --workdir=runs/large"
    )
    return 0


def _on_this_machine(
    values: dict[str, Any], source: Source, options: Options
) -> Manifest:
    from recsys.data import shard_preparation

    if values["beam"]:
        raise InputError(
            f"--beam goes with --runner. Received: --beam={values['beam'][0]}"
        )
    num_workers = values["num_workers"]
    if num_workers is None:
        num_workers = shard_preparation.default_workers()
    if num_workers < 1:
        raise InputError(
            f"--num_workers must be at least 1. Received: {num_workers}"
        )
    output = pathlib.Path(values["output"]).expanduser()
    shard_preparation.check_output(output)
    units, items = source.units()
    return shard_preparation.prepare_shards(
        units, items, source.data, output, options, num_workers
    )


def _with_beam(
    values: dict[str, Any], source: Source, options: Options
) -> Manifest:
    if values["num_workers"] is not None:
        raise InputError(
            "--num_workers is for this machine; a runner has options of its "
            "own, such as --beam=--direct_num_workers=2. "
            f"Received: --num_workers={values['num_workers']}"
        )
    try:
        from recsys.data import beam_preparation
    except ImportError as error:
        raise InputError(
            "--runner needs the extra [beam] (pip install 'recsys[beam]'). "
            f"Received: {error}"
        ) from error
    units, items = source.units()
    return beam_preparation.prepare_shards(
        units,
        items,
        source.data,
        values["output"],
        options,
        [f"--runner={values['runner']}", *(values["beam"] or [])],
    )


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
