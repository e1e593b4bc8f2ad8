"""Shards prepared by the processes of one machine, from a log of any size.

The rows of the log wait on the disk, dealt to shards; in memory are, for each
process, a block of the log or a shard, and the items.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any

import pyarrow as pa

from recsys.data import files
from recsys.data import shard_preparation as steps
from recsys.data.log_blocks import Unit
from recsys.data.shards import Manifest
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError

_VOCABULARY = "items.parquet"


def prepare_shards(
    units: Sequence[Unit],
    items: pa.Table | None,
    name: str,
    output: pathlib.Path,
    options: steps.Options,
    num_workers: int,
) -> Manifest:
    """Reads a log and writes shards.

    Args:
        units: The log.
        items: What is known of its items.
        name: What it is called.
        output: The folder that gets the shards; made if missing. The rows of
            the log wait in a folder within it, that is removed.
        options: What is prepared.
        num_workers: How many processes do it; with 1, this one.

    Returns:
        What the folder holds.

    Raises:
        InputError: The log cannot be read, or too little is left of it.
        OSError: The disk is full or cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        spill = pathlib.Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=output))
        )
        run = stack.enter_context(_workers(num_workers))
        found = steps.FoundItems()
        num_low_ratings = 0
        deal = functools.partial(_deal, spill=spill, options=options)
        for unit_items, num_low in run(deal, units):
            num_low_ratings += num_low
            found.add(unit_items)
        vocabulary = steps.number_items(found.merged())
        del found
        vocabulary.save(spill / _VOCABULARY)
        make = functools.partial(
            _make,
            spill=spill,
            output=output,
            num_units=len(units),
            options=options,
        )
        summaries = list(run(make, range(options.num_shards)))
        return steps.write_manifest(
            summaries,
            vocabulary,
            items,
            name,
            num_low_ratings,
            options,
            functools.partial(_open, output),
        )


@contextlib.contextmanager
def _workers(num_workers: int) -> Iterator[Any]:
    """Gives a `map` over processes, or over nothing but this one."""
    if num_workers == 1:
        yield map
        return
    # A fork would copy Arrow's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, context) as pool:
        yield pool.map


def _deal(
    unit: Unit, spill: pathlib.Path, options: steps.Options
) -> tuple[pa.Table, int]:
    """Writes the rows of a unit to one file, shard by shard in each block.

    Returns:
        The unit's items, and how many rows had too low a rating.
    """
    found = steps.FoundItems()
    num_low_ratings = 0
    row = unit.number << 40
    lz4 = pa.ipc.IpcWriteOptions(compression="lz4")
    with contextlib.ExitStack() as stack:
        writer = None
        for block in unit.blocks():
            part = steps.partition(block, row, options, unit.name)
            if writer is None:
                writer = stack.enter_context(
                    pa.ipc.new_file(
                        str(_spilled(spill, unit.number)),
                        part.pieces[0].schema,
                        options=lz4,
                    )
                )
            for piece in part.pieces:
                writer.write_batch(piece)
            found.add(part.items)
            row += len(block)
            num_low_ratings += part.num_low_ratings
    return found.merged(), num_low_ratings


def _make(
    shard: int,
    spill: pathlib.Path,
    output: pathlib.Path,
    num_units: int,
    options: steps.Options,
) -> steps.ShardSummary:
    """Makes one shard of the rows that were dealt to it."""
    return steps.write_shard(
        shard,
        list(_dealt(spill, num_units, shard, options.num_shards)),
        _vocabulary(spill / _VOCABULARY),
        options,
        functools.partial(_open, output),
    )


def _dealt(
    spill: pathlib.Path, num_units: int, shard: int, num_shards: int
) -> Iterable[pa.RecordBatch]:
    for unit in range(num_units):
        path = _spilled(spill, unit)
        if not path.exists():
            continue
        with pa.memory_map(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for number in range(shard, reader.num_record_batches, num_shards):
                yield reader.get_batch(number)


@functools.lru_cache(maxsize=1)
def _vocabulary(path: pathlib.Path) -> Vocabulary:
    """Reads the items, once in each process."""
    return Vocabulary.load(path)


def _spilled(spill: pathlib.Path, unit: int) -> pathlib.Path:
    return spill / f"{unit:08d}.arrow"


def _open(folder: pathlib.Path, name: str) -> IO[bytes]:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    return path.open("wb")


def default_workers() -> int:
    """One process for each core."""
    return os.cpu_count() or 1


def check_output(output: pathlib.Path) -> None:
    """Checks that a folder may be filled.

    Raises:
        InputError: It is no folder, not empty, or cannot be written.
    """
    if not files.is_new_or_empty(output):
        raise InputError(
            "--output must be a new or an empty folder. "
            f"Received: {str(output)!r}"
        )
    if not files.can_write(output):
        raise InputError(
            "--output must be a folder that can be written. "
            f"Received: {str(output)!r}"
        )
