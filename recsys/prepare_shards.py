"""`python -m recsys.prepare_shards`: turns a log into a folder of shards."""

from __future__ import annotations

import pathlib
import shlex
import signal
import sys
from typing import Any

import recsys
from recsys.command_line import (
    Command,
    add_beam_flags,
    add_config_flags,
    given_beam_options,
)
from recsys.config import (
    EVENT_FIELDS,
    FEATURE_FIELDS,
    HELD_OUT_BY_USER,
    SOURCE_FIELDS,
    TrainConfig,
    other_columns,
)
from recsys.errors import InputError

# Fields of a configuration that shards are prepared with, besides the split.
_FIELDS = ("min_rating", "repeats", *EVENT_FIELDS, *FEATURE_FIELDS)

COMMAND = Command(
    "recsys.prepare_shards",
    "Prepares a log that does not fit in memory: filters, splits and sorts it "
    "into a folder of shards, which recsys.train reads with --data. Runs on "
    "this machine, or with --runner on any runner of Apache Beam.",
    [
        "python -m recsys.prepare_shards --data=logs/ --output=shards",
        "python -m recsys.train --data=shards --table_init=random \\\n"
        "      --workdir=runs/large",
        "python -m recsys.prepare_shards --data=/mnt/logs \\\n"
        "      --output=gs://bucket/shards --runner=DataflowRunner \\\n"
        "      --beam=--project=… --beam=--region=…",
    ],
)
add_config_flags(COMMAND, [*SOURCE_FIELDS, *_FIELDS])
COMMAND.add_flag(
    str,
    "split",
    "What to hold out; only splits that look at one user at a time: "
    f"{', '.join(HELD_OUT_BY_USER)}. Default: leave_last_out.",
    group="Data",
)
COMMAND.add_flag(
    pathlib.Path,
    "output",
    "Folder of the shards, new or empty.",
    group="Shards",
)
COMMAND.add_flag(
    int,
    "num_shards",
    "Number of shards. A process holds a whole shard in memory while making "
    "it: a million interactions are a good size.",
    group="Shards",
    default=64,
)
COMMAND.add_flag(
    int,
    "num_queries",
    "Number of users with queries, selected by a hash of their ids; 0 for all.",
    group="Shards",
    default=10_000,
)
COMMAND.add_flag(
    int,
    "num_workers",
    "Number of processes on this machine. Default: one for each core that this "
    "process may use.",
    group="Execution",
)
add_beam_flags(COMMAND)


def main(values: dict[str, Any]) -> int:
    """Prepares shards and prints how to train on them.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    for name, what in (("output", "a folder"), ("data", "a log")):
        if not values[name]:
            raise InputError(f"--{name} must name {what}. Received: none")
    given = {
        name: values[name]
        for name in ("split", *_FIELDS)
        if values[name] is not None
    }
    options = recsys.data.shard_preparation.Options(
        num_shards=values["num_shards"],
        num_queries=values["num_queries"],
        **given,
    )
    located = {name: values[name] for name in SOURCE_FIELDS}
    config = TrainConfig(**{**located, **given})  # Checks what goes together.
    source = recsys.data.sources.Source(
        **located, other_columns=other_columns(config)
    )
    beam_options = given_beam_options(values)
    num_workers = values["num_workers"]
    if num_workers is not None and beam_options is not None:
        raise InputError(
            "--num_workers is for this machine; a runner has options of its "
            "own, such as --beam=--direct_num_workers=2. "
            f"Received: --num_workers={num_workers}"
        )
    if num_workers is not None and num_workers < 1:
        raise InputError(
            f"--num_workers must be at least 1. Received: {num_workers}"
        )
    # The default would leave the workers and half of the shards behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if beam_options is None:
        manifest = recsys.data.shard_preparation.prepare_shards(
            source, pathlib.Path(values["output"]), options, num_workers
        )
    else:
        manifest = recsys.data.beam_preparation.prepare_shards(
            source, values["output"], options, beam_options
        )
    lines = [*source.notes(), manifest.summary()]
    print("\n".join([*lines, *recsys.data.prepare.left_out(manifest)]))
    flags = "".join(
        f" --{name}={shlex.quote(str(value))}" for name, value in given.items()
    )
    data = shlex.quote(values["output"])
    print(
        f"Next:\n  python -m recsys.train --data={data}{flags} "
        "--table_init=random --workdir=runs/large"
    )
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
