"""Shards prepared by Apache Beam, on any of its runners.

Elements are blocks of columns, about a million rows each, not rows: the steps
are those of `recsys.data.shard_preparation`, and few elements cost little on
any runner. Every worker must reach the log and the output under the same
names: a shared disk, or for the output any file system that Beam knows.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from recsys.data import shard_preparation as steps
from recsys.data import shards
from recsys.data.sources import Unit
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError

# What `_deal` gives besides the rows.
_ITEMS = "items"
_LOW_RATINGS = "low_ratings"
# A block of rows for a shard: its place in the log, and Arrow's bytes.
_Piece = tuple[int, bytes]


def prepare_shards(
    units: Sequence[Unit],
    items: pa.Table | None,
    name: str,
    output: str,
    options: steps.Options,
    beam_options: Sequence[str],
) -> shards.Manifest:
    """Reads a log and writes shards.

    Args:
        units: The log.
        items: What is known of its items.
        name: What it is called.
        output: The folder that gets the shards, new or empty.
        options: What is prepared.
        beam_options: The runner and its options, as Beam's flags.

    Returns:
        What the folder holds.

    Raises:
        InputError: The folder is not empty, the log cannot be read, or too
            little is left of it.
    """
    if FileSystems.match([FileSystems.join(output, "*")])[0].metadata_list:
        raise InputError(
            f"--output must be a new or an empty folder. Received: {output!r}"
        )
    open_file = functools.partial(_open, output)
    with (
        _plain_errors(),
        beam.Pipeline(options=PipelineOptions(list(beam_options))) as root,
    ):
        dealt = (
            root
            | "Units" >> beam.Create(list(units))
            | "Spread" >> beam.Reshuffle()
            | "Deal"
            >> beam.ParDo(_Deal(options)).with_outputs(
                _ITEMS, _LOW_RATINGS, main="pieces"
            )
        )
        vocabulary = (
            dealt[_ITEMS]
            | "Merge items" >> beam.CombineGlobally(_merge)
            | "Number items" >> beam.Map(_number)
        )
        num_low_ratings = dealt[_LOW_RATINGS] | beam.CombineGlobally(sum)
        every_shard = root | "Every shard" >> beam.Create(
            [(shard, None) for shard in range(options.num_shards)]
        )
        summaries = (
            [dealt.pieces, every_shard]
            | "Pieces and shards" >> beam.Flatten()
            | "By shard" >> beam.GroupByKey()
            | "Write shards"
            >> beam.Map(
                _write_shard,
                beam.pvalue.AsSingleton(vocabulary),
                options,
                open_file,
            )
        )
        _ = (
            root
            | "Once" >> beam.Create([None])
            | "Write manifest"
            >> beam.Map(
                _write_manifest,
                beam.pvalue.AsList(summaries),
                beam.pvalue.AsSingleton(vocabulary),
                items,
                name,
                beam.pvalue.AsSingleton(num_low_ratings),
                options,
                open_file,
            )
        )
    with FileSystems.open(FileSystems.join(output, shards.MANIFEST)) as stream:
        return shards.parse_manifest(stream.read().decode(), output)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raises what a worker raised as InputError again, as such.

    Beam adds where it happened, and a worker that is another process gives
    it back as text within an error of Beam's own.
    """
    try:
        yield
    except Exception as error:
        found = re.findall(r"InputError: (.*)", str(error))
        if isinstance(error, InputError):
            found = [str(error)]
        if not found:
            raise
        message = re.sub(r" \[while running .*", "", found[-1])
        raise InputError(message) from error


class _Deal(beam.DoFn):
    """Gives (shard, piece) for the rows of a unit, and its items."""

    def __init__(self, options: steps.Options) -> None:
        self._options = options

    def process(self, unit: Unit) -> Iterator[object]:
        row = unit.number << 40
        for block in unit.blocks():
            part = steps.partition(block, row, self._options, unit.name)
            for shard, piece in enumerate(part.pieces):
                if piece.num_rows:
                    yield shard, (row, steps.to_bytes(piece))
            yield beam.pvalue.TaggedOutput(_ITEMS, steps.to_bytes(part.items))
            yield beam.pvalue.TaggedOutput(_LOW_RATINGS, part.num_low_ratings)
            row += len(block)


def _merge(found: Iterable[bytes]) -> bytes:
    tables = [steps.from_bytes(data) for data in found]
    return steps.to_bytes(steps.merge_items([steps.NO_ITEMS, *tables]))


def _number(found: bytes) -> bytes:
    vocabulary = steps.number_items(steps.from_bytes(found))
    return steps.to_bytes(vocabulary.items)


@functools.lru_cache(maxsize=1)
def _vocabulary(data: bytes) -> Vocabulary:
    """Reads the items, once in each worker."""
    return Vocabulary(steps.from_bytes(data)["item_id"])


def _write_shard(
    grouped: tuple[int, Iterable[_Piece | None]],
    vocabulary: bytes,
    options: steps.Options,
    open_file: steps.Opener,
) -> steps.ShardSummary:
    shard, found = grouped
    # A runner gives them in any order.
    pieces = sorted(piece for piece in found if piece is not None)
    batches = [
        batch
        for _, data in pieces
        for batch in steps.from_bytes(data).to_batches()
    ]
    return steps.write_shard(
        shard, batches, _vocabulary(vocabulary), options, open_file
    )


def _write_manifest(
    _: None,
    summaries: list[steps.ShardSummary],
    vocabulary: bytes,
    items: pa.Table | None,
    name: str,
    num_low_ratings: int,
    options: steps.Options,
    open_file: steps.Opener,
) -> None:
    steps.write_manifest(
        summaries,
        _vocabulary(vocabulary),
        items,
        name,
        num_low_ratings,
        options,
        open_file,
    )


def _open(folder: str, name: str) -> IO[bytes]:
    *parents, _ = name.split("/")
    target = FileSystems.join(folder, *parents)
    if not FileSystems.exists(target):
        try:
            FileSystems.mkdirs(target)
        except OSError:
            # Another worker was quicker.
            if not FileSystems.exists(target):
                raise
    return FileSystems.create(
        FileSystems.join(folder, name),
        mime_type="application/octet-stream",
        compression_type="uncompressed",
    )
