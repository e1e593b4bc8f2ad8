"""From a log to shards, on any runner of Apache Beam.

The steps are those of `recsys.data.shard_preparation`. Elements are blocks of
about a million rows, so there are few of them, which is cheap on any runner.
Every worker must reach the log and the output under the same names: on a shared
disk, or for the output on any file system that Beam supports.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import apache_beam as beam
import pyarrow as pa
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from recsys.data import shard_preparation as steps
from recsys.data import shards
from recsys.data.sources import Source, Unit
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError

# The outputs of `_deal` besides the pieces.
_ITEMS = "items"
_COUNTS = "counts"
# A piece of a shard: its position in the log, and the bytes of Arrow's stream.
_Piece = tuple[int, bytes]


def prepare_shards(
    source: Source,
    output: str,
    options: steps.Options,
    beam_options: Sequence[str],
) -> shards.Manifest:
    """Reads a log and writes shards.

    Args:
        source: The log.
        output: The folder of the shards, new or empty.
        options: How to prepare the shards.
        beam_options: The runner and its options, as Beam's flags.

    Returns:
        The manifest of the folder.

    Raises:
        InputError: The folder is not empty, the log cannot be read, or too
            little is left of it.
    """
    check_new(output)
    units, items = source.units()
    users = steps.kept_users(source, options)
    preparation = steps.Preparation(
        source.data, options, functools.partial(create, output)
    )
    with (
        input_errors(),
        beam.Pipeline(options=PipelineOptions(list(beam_options))) as root,
    ):
        _build(root, preparation, units, items, users)
    with FileSystems.open(FileSystems.join(output, shards.MANIFEST)) as stream:
        return shards.parse_manifest(stream.read().decode(), output)


def check_new(output: str) -> None:
    """Raises InputError if a folder, of any file system, has content."""
    if FileSystems.match([FileSystems.join(output, "*")])[0].metadata_list:
        raise InputError(
            f"--output must be a new or an empty folder. Received: {output!r}"
        )


def _build(
    root: beam.Pipeline,
    preparation: steps.Preparation,
    units: Sequence[Unit],
    items: pa.Table | None,
    users: pa.Table | None,
) -> None:
    """Adds all steps to a pipeline."""
    dealt = (
        root
        | "Units" >> beam.Create(list(units))
        | "Spread" >> beam.Reshuffle()
        | "Deal"
        >> beam.FlatMap(_deal, preparation).with_outputs(
            _ITEMS, _COUNTS, main="pieces"
        )
    )
    vocabulary = beam.pvalue.AsSingleton(
        dealt[_ITEMS]
        | "Merge items" >> beam.CombineGlobally(_merge)
        | "Number items" >> beam.Map(_number)
    )
    # Shards without rows are written too.
    every_shard = root | "Every shard" >> beam.Create(
        [(shard, None) for shard in range(preparation.options.num_shards)]
    )
    summaries = (
        [dealt.pieces, every_shard]
        | "Pieces and shards" >> beam.Flatten()
        | "By shard" >> beam.GroupByKey()
        | "Write shards"
        >> beam.Map(_write_shard, preparation, vocabulary, users)
    )
    counts = dealt[_COUNTS] | beam.CombineGlobally(_sum)
    _ = (
        root
        | "Once" >> beam.Create([preparation])
        | "Write manifest"
        >> beam.Map(
            _write_manifest,
            beam.pvalue.AsList(summaries),
            vocabulary,
            items,
            beam.pvalue.AsSingleton(counts),
        )
    )


def _deal(unit: Unit, preparation: steps.Preparation) -> Iterator[object]:
    """Yields (shard, piece) for the rows of a unit, and its items."""
    for dealt in preparation.deal(unit):
        for shard, piece in enumerate(dealt.pieces):
            if piece.num_rows:
                yield shard, (dealt.first_row, _to_bytes(piece))
        yield beam.pvalue.TaggedOutput(_ITEMS, _to_bytes(dealt.items))
        yield beam.pvalue.TaggedOutput(_COUNTS, dealt.counts)


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    return sum(counts, Counter())


def _merge(parts: Iterable[bytes]) -> bytes:
    found = steps.FoundItems()
    for part in parts:
        found.add(_from_bytes(part))
    return _to_bytes(found.merged())


def _number(found: bytes) -> bytes:
    return _to_bytes(steps.number_items(_from_bytes(found)).items)


@functools.lru_cache(maxsize=1)
def _load_vocabulary(data: bytes) -> Vocabulary:
    """Loads the items, once in each worker."""
    return Vocabulary(_from_bytes(data)["item_id"])


def _write_shard(
    grouped: tuple[int, Iterable[_Piece | None]],
    preparation: steps.Preparation,
    vocabulary: bytes,
    users: pa.Table | None,
) -> steps.ShardSummary:
    shard, found = grouped
    # Runners return them in any order.
    pieces = sorted(piece for piece in found if piece is not None)
    batches = (
        batch for _, data in pieces for batch in _from_bytes(data).to_batches()
    )
    return preparation.write_shard(
        shard, batches, _load_vocabulary(vocabulary), users
    )


def _write_manifest(
    preparation: steps.Preparation,
    summaries: list[steps.ShardSummary],
    vocabulary: bytes,
    items: pa.Table | None,
    counts: Counter[str],
) -> None:
    preparation.write_manifest(
        summaries, _load_vocabulary(vocabulary), items, counts
    )


def _to_bytes(rows: pa.RecordBatch | pa.Table) -> bytes:
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, rows.schema, options=options) as writer:
        writer.write(rows)
    return sink.getvalue()


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Raises an InputError of a worker as it was.

    Beam adds where it happened, and a worker in another process returns it
    as text within an error of Beam's own.
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


def create(folder: str, name: str) -> IO[bytes]:
    """Creates a file in a folder, of any file system.

    Args:
        folder: The folder; it and those on the way to the file may be new.
        name: The path of the file in it, with "/".

    Returns:
        The file, to write bytes to.
    """
    *parents, _ = name.split("/")
    target = FileSystems.join(folder, *parents)
    if not FileSystems.exists(target):
        try:
            FileSystems.mkdirs(target)
        except OSError:
            # Another worker may have made it.
            if not FileSystems.exists(target):
                raise
    return FileSystems.create(
        FileSystems.join(folder, name),
        mime_type="application/octet-stream",
        compression_type="uncompressed",
    )
