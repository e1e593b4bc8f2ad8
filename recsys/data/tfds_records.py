"""The records of MovieLens as TensorFlow Datasets prepares them, by column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import tensorflow as tf

from recsys.data.items import NO_GENRES
from recsys.data.pipeline import without_autotune
from recsys.errors import InputError
from recsys.files import num_usable_cores

_BATCH_ROWS = 65_536
# The fields by the roles that `recsys.data.tables.assemble` expects.
_ROLES = {
    "user": "user_id",
    "item": "movie_id",
    "timestamp": "timestamp",
    "rating": "user_rating",
}
# What TFDS repeats of the user with each rating, and our names.
_USER_FIELDS = {
    "user_gender": "gender",
    "raw_user_age": "age",
    "bucketized_user_age": "age_group",
    "user_occupation_text": "occupation",
    "user_zip_code": "zip",
}
_PADDING = -1
# Title and genres of each film, by its id.
Films = dict[str, tuple[str, list[str]]]


def read(builder: Any, name: str) -> tuple[pa.Table, Films, pa.Table | None]:
    """Reads the ratings of a configuration.

    Args:
        builder: Its builder, prepared.
        name: Its name, for error messages.

    Returns:
        `user`, `item`, `timestamp` and `rating` of each rating; the films; and
        where the set has them the users.

    Raises:
        InputError: A file is damaged.
    """
    chunks: dict[str, list[pa.Array]] = {role: [] for role in _ROLES}
    genre_names = builder.info.features["movie_genres"].feature.names
    known = [n for n in _USER_FIELDS if n in builder.info.features]
    films: Films = {}
    users: dict[str, list[Any]] = {}
    try:
        for batch in _batches(builder):
            for role in ("user", "item"):
                ids, codes = tf.unique(batch[_ROLES[role]])
                ids = pa.array(ids.numpy(), pa.binary()).cast(pa.string())
                chunk = pa.DictionaryArray.from_arrays(codes.numpy(), ids)
                chunks[role].append(chunk)
            for role in ("timestamp", "rating"):
                chunks[role].append(pa.array(batch[_ROLES[role]].numpy()))
            _add_films(films, ids.to_pylist(), codes, batch, genre_names)
            if known:
                _add_users(users, known, batch)
    except tf.errors.OpError as error:
        raise InputError(
            f"{builder.data_dir}: expected what TFDS prepared for "
            f"'tfds:{name}'. Received: {' '.join(error.message.split())}"
        ) from error
    columns = {role: pa.chunked_array(chunks[role]) for role in _ROLES}
    if not known:
        return pa.table(columns), films, None
    rows = [[user_id, *row] for user_id, row in users.items()]
    names = ["user_id", *(_USER_FIELDS[n] for n in known)]
    found = [pa.array(column) for column in zip(*rows, strict=True)]
    return pa.table(columns), films, pa.table(found, names)


def _add_users(
    users: dict[str, list[Any]], known: list[str], batch: dict[str, Any]
) -> None:
    """Adds the users of a batch that are new."""
    ids, codes = tf.unique(batch["user_id"])
    first = tf.math.unsorted_segment_min(
        tf.range(tf.size(codes)), codes, tf.size(ids)
    )
    columns = [tf.gather(batch[name], first).numpy().tolist() for name in known]
    if "user_gender" in known:
        place = known.index("user_gender")
        columns[place] = ["FM"[is_male] for is_male in columns[place]]
    for user_id, *row in zip(ids.numpy(), *columns, strict=True):
        users.setdefault(
            user_id.decode(),
            [x.decode() if isinstance(x, bytes) else x for x in row],
        )


def _add_films(
    films: Films,
    ids: list[str],
    codes: tf.Tensor,
    batch: dict[str, Any],
    genre_names: list[str],
) -> None:
    """Adds the films of a batch that are new; its rows are `codes` of `ids`."""
    new = [place for place, film_id in enumerate(ids) if film_id not in films]
    if not new:
        return
    first = tf.math.unsorted_segment_min(
        tf.range(tf.size(codes)), codes, len(ids)
    )
    rows = tf.gather(first, new)
    titles = tf.gather(batch["movie_title"], rows).numpy()
    genres = tf.gather(batch["movie_genres"], rows).numpy()
    for place, title, labels in zip(new, titles, genres, strict=True):
        names = [genre_names[label] for label in labels if label != _PADDING]
        films[ids[place]] = (
            title.decode(),
            [name for name in names if name.lower() not in NO_GENRES],
        )


def _batches(builder: Any) -> Iterator[dict[str, Any]]:
    """Yields batches of the fields that are used.

    TFDS decodes rows one by one; parsing batches of records is about thirty
    times as fast.
    """
    specs = builder.info.features.tf_example_spec
    fields = [*_ROLES.values(), "movie_title"]
    fields += [name for name in _USER_FIELDS if name in specs]
    spec = {field: specs[field] for field in fields}
    # The default padding, 0, is a genre.
    spec["movie_genres"] = tf.io.FixedLenSequenceFeature(
        [], tf.int64, allow_missing=True, default_value=_PADDING
    )
    files = [str(path) for path in builder.info.splits["train"].filepaths]
    batches = tf.data.TFRecordDataset(files).batch(_BATCH_ROWS)
    num_cores = num_usable_cores()
    batches = batches.map(
        lambda records: tf.io.parse_example(records, spec),
        num_parallel_calls=num_cores,
    )
    yield from without_autotune(batches.prefetch(num_cores))
