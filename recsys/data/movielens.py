"""MovieLens, in GroupLens's own layouts and from TensorFlow Datasets."""

from __future__ import annotations

import os
import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data import input_files, tables
from recsys.data import items as items_lib
from recsys.data.columns import TextOptions
from recsys.data.interactions import Interactions
from recsys.errors import InputError
from recsys.files import atomic_path, num_usable_cores

# The ratings file of a set with a header, and how those of sets without one are
# written; their README lists the columns.
CSV_LAYOUT = "ratings.csv"
_COLUMNS = ("userId", "movieId", "rating", "timestamp")
FORMS = {
    "ratings.dat": TextOptions(_COLUMNS, "::"),
    "u.data": TextOptions(_COLUMNS, "tab"),
}
_FILMS = {"ratings.dat": "movies.dat", "u.data": "u.item"}
LAYOUTS = (CSV_LAYOUT, *FORMS)
_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|"
    "Drama|Fantasy|Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|"
    "War|Western"
).split("|")


def ratings_files(members: dict[str, Traversable]) -> dict[str, Traversable]:
    """Returns the ratings files in a folder, plain or gzip, by layout.

    Args:
        members: The files of the folder by name.
    """
    found = {layout: member(members, layout) for layout in LAYOUTS}
    return {layout: file for layout, file in found.items() if file is not None}


def member(members: dict[str, Traversable], name: str) -> Traversable | None:
    """Returns a file of a folder, plain or gzip, or None if it is missing.

    Args:
        members: The files of the folder by name.
        name: The name without ".gz".
    """
    return members.get(name) or members.get(name + ".gz")


def read_films(members: dict[str, Traversable], layout: str) -> pa.Table | None:
    """Reads the films that go with a ratings file without a header.

    Args:
        members: The files of its folder by name, plain or gzip.
        layout: "ratings.dat" or "u.data".

    Returns:
        The items table, or None if the file of films is missing.

    Raises:
        InputError: The file is damaged or a row malformed.
    """
    films = member(members, _FILMS[layout])
    if films is None:
        return None
    if layout == "ratings.dat":
        return _read_movies_dat(films)
    return _read_u_item(films, member(members, "u.genre"))


def _read_movies_dat(file: Traversable) -> pa.Table:
    """Reads lines such as "1::Toy Story (1995)::Animation|Comedy"."""
    rows = [fields for _, fields in _split_lines(file, "::", 3)]
    ids, titles, genres = zip(*rows, strict=True)
    table = pa.table({"item_id": ids, "title": titles, "genres": genres})
    return items_lib.tidy(table, file)


# The users file of a layout, its delimiter and its columns.
_USERS = {
    "ratings.dat": (
        *("users.dat", "::"),
        ("user_id", "gender", "age", "occupation", "zip"),
    ),
    "u.data": (
        *("u.user", "|"),
        ("user_id", "age", "gender", "occupation", "zip"),
    ),
}


def read_users(members: dict[str, Traversable], layout: str) -> pa.Table | None:
    """Reads the users that go with a ratings file without a header.

    Args:
        members: The files of its folder by name, plain or gzip.
        layout: "ratings.dat" or "u.data"; any other has no such file.

    Returns:
        `user_id`, `gender`, `age` (int64), `occupation` and `zip`, or None if
        the file is missing.

    Raises:
        InputError: The file is damaged or a row malformed.
    """
    if layout not in _USERS:
        return None
    name, delimiter, columns = _USERS[layout]
    file = member(members, name)
    if file is None:
        return None
    rows = [row for _, row in _split_lines(file, delimiter, len(columns))]
    table = pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True)))
    place = columns.index("age")
    try:
        ages = table["age"].cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{file}: expected whole numbers as ages. Received: {error}"
        ) from error
    table = table.set_column(place, "age", ages)
    return items_lib.users_table(table, "user_id", file)


def _films_table(
    ids: list[str], titles: list[str], genres: list[list[str]]
) -> pa.Table:
    return pa.table(
        {
            "item_id": pa.array(ids, pa.string()),
            "title": pa.array(titles, pa.string()),
            "genres": pa.array(genres, pa.list_(pa.string())),
        }
    )


def _read_u_item(file: Traversable, genre_file: Traversable | None) -> pa.Table:
    """Reads lines of id, title, two dates, a URL and genre flags."""
    names = _GENRES_100K
    if genre_file is not None:
        names = _read_u_genre(genre_file)
    ids, titles, genres = [], [], []
    for number, fields in _split_lines(file, "|", 5 + len(names)):
        flags = fields[5:]
        if not set(flags) <= {"0", "1"}:
            raise InputError(
                f"{file}, line {number}: expected {len(names)} genre flags, "
                f"0 or 1. Received: {'|'.join(flags)!r}"
            )
        ids.append(fields[0])
        titles.append(fields[1])
        genres.append(
            [
                name
                for name, flag in zip(names, flags, strict=True)
                if flag == "1" and name not in items_lib.NO_GENRES
            ]
        )
    return items_lib.tidy(_films_table(ids, titles, genres), file)


def _read_u_genre(file: Traversable) -> list[str]:
    """Reads lines such as "Action|1"; returns the names in their order."""
    places = list[tuple[int, str]]()
    for number, (name, place) in _split_lines(file, "|", 2):
        try:
            places.append((int(place), name))
        except ValueError as error:
            raise InputError(
                f"{file}, line {number}: expected a genre and its number. "
                f"Received: {place[:80]!r} as the number"
            ) from error
    return [name for _, name in sorted(places, key=lambda pair: pair[0])]


def _split_lines(
    file: Traversable, delimiter: str, num_fields: int
) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and fields of each line that is not blank."""
    is_blank = True
    for number, line in enumerate(input_files.read_lines(file, "latin-1"), 1):
        line = line.rstrip("\r\n")
        if not line:
            continue
        fields = line.split(delimiter)
        if len(fields) != num_fields:
            raise InputError(
                f"{file}, line {number}: expected {num_fields} fields "
                f"separated by {delimiter!r}. Received: {line[:120]!r}"
            )
        is_blank = False
        yield number, fields
    if is_blank:
        raise InputError(
            f"{file}: expected {num_fields} fields in a line. "
            "Received: blank lines only"
        )


_DATASET = "movielens"
_BATCH_ROWS = 65_536
# The fields by the roles that `tables.assemble` expects.
_ROLES = {
    "user": "user_id",
    "item": "movie_id",
    "timestamp": "timestamp",
    "rating": "user_rating",
}
_PADDING = -1


def read_tfds(
    name: str, data_dir: str | None = None, manual_dir: str | None = None
) -> tuple[Interactions, pa.Table, pa.Table | None]:
    """Reads the ratings of a configuration, preparing it if needed.

    TensorFlow Datasets shuffles the rows, in the same way each time. Their
    order breaks ties between equal timestamps.

    Args:
        name: The configuration, such as "movielens/1m-ratings".
        data_dir: Where TFDS keeps prepared data. Default: its own default.
        manual_dir: A folder with the original archive, which is used instead
            of a download.

    Returns:
        The interactions, the films with their titles and genres, and where
        the set has them the users with gender, age, occupation and zip.

    Raises:
        InputError: TFDS is not installed or has no such configuration, or
            the archive is neither in the folder nor can be downloaded.
    """
    try:
        # pylint: disable-next=import-outside-toplevel
        import tensorflow_datasets
    except ImportError as error:
        raise InputError(
            "`data` from TFDS needs the packages tensorflow-datasets and "
            f"importlib_resources. Received: {error}"
        ) from error
    if manual_dir is not None:
        folder = pathlib.Path(os.path.expanduser(manual_dir))
        if not folder.is_dir():
            raise InputError(
                "`tfds_manual_dir` must be a folder that exists. "
                f"Received: {manual_dir!r}"
            )
        manual_dir = str(folder.absolute())
    builder = _builder(tensorflow_datasets, name, data_dir)
    _prepare(tensorflow_datasets, builder, name, manual_dir)
    cache = _Cache(pathlib.Path(builder.data_dir))
    columns = cache.read()
    if columns is None:
        columns = _read_columns(builder, name)
        cache.write(*columns)
    ratings, films, users = columns
    return tables.assemble([ratings], [f"tfds:{name}"]), films, users


class _Cache:
    """Caches the columns of a configuration in the folder that TFDS prepared.

    TFDS replaces the folder as a whole, so the columns are never older than
    the records.

    Args:
        folder: The folder of the configuration and version.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._ratings = folder / "recsys-ratings.parquet"
        self._films = folder / "recsys-films.parquet"
        self._users = folder / "recsys-users.parquet"

    def read(self) -> tuple[pa.Table, pa.Table, pa.Table | None] | None:
        """Returns ratings, films and users, or None if not cached."""
        try:
            ratings = pq.ParquetFile(
                self._ratings, read_dictionary=["user", "item"]
            ).read()
            users = pq.ParquetFile(self._users).read()
            films = pq.ParquetFile(self._films).read()
            return ratings, films, users if users.num_columns else None
        except (OSError, pa.ArrowException):
            return None

    def write(
        self, ratings: pa.Table, films: pa.Table, users: pa.Table | None
    ) -> None:
        """Caches the columns, unless the folder is not writable."""
        # The ratings last: if they are cached, so are the others.
        for path, table in (
            (self._films, films),
            (self._users, pa.table({}) if users is None else users),
            (self._ratings, ratings),
        ):
            try:
                with atomic_path(path) as temporary:
                    pq.write_table(table, temporary, compression="zstd")
            except OSError:
                return


def _builder(tfds: Any, name: str, data_dir: str | None) -> Any:
    configs = tfds.builder_cls(_DATASET).builder_configs
    known = sorted(
        f"{_DATASET}/{config}"
        for config in configs
        if config.endswith("-ratings")
    )
    if name not in known:
        raise InputError(
            "`data` from TFDS must be one of "
            f"{', '.join('tfds:' + config for config in known)}. "
            f"Received: {'tfds:' + name!r}"
        )
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
    return tfds.builder(name, data_dir=data_dir)


def _prepare(
    tfds: Any, builder: Any, name: str, manual_dir: str | None
) -> None:
    """Downloads and prepares the data unless it is prepared already."""
    if builder.is_prepared():
        return
    url = builder.builder_config.download_url
    archive = pathlib.PurePosixPath(urllib.parse.urlsplit(url).path).name
    advice = (
        f"'tfds:{name}' needs {archive}: name a folder that holds it with "
        f"--tfds_manual_dir, or make {url} reachable. Received: "
    )
    by_hand = manual_dir and (pathlib.Path(manual_dir) / archive).is_file()
    downloads = pathlib.Path(builder.data_dir).parents[2] / "downloads"
    # TFDS also extracts archives to folders named .zip.
    cached = any(path.is_file() for path in downloads.rglob("*.zip"))
    if not by_hand and not cached:
        reason = _why_unreachable(url)
        if reason:
            raise InputError(
                advice
                + (f"no such file in {manual_dir}, and " if manual_dir else "")
                + reason
            )
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config)
    except (OSError, tfds.download.DownloadError) as error:
        raise InputError(advice + " ".join(str(error).split())) from error
    except Exception as error:
        # The class of this error is not public in TFDS.
        if "checksum" not in type(error).__name__.lower():
            raise
        raise InputError(
            f"'tfds:{name}' needs {archive} as GroupLens published it. "
            f"Received: {' '.join(str(error).split())}"
        ) from error


def _why_unreachable(url: str) -> str | None:
    """Returns why a host cannot be reached, or None if it seems reachable.

    TFDS would try ten times, which takes minutes, before failing.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in urllib.request.getproxies():
        return None
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname, port), timeout=10).close()
        return None
    except OSError as error:
        return f"no connection to {parts.hostname} ({error})"


def _read_columns(
    builder: Any, name: str
) -> tuple[pa.Table, pa.Table, pa.Table | None]:
    # pylint: disable-next=import-outside-toplevel
    import tensorflow as tf

    chunks: dict[str, list[pa.Array]] = {role: [] for role in _ROLES}
    films = _Films(builder.info.features["movie_genres"].feature.names)
    known = [n for n in _USER_FIELDS if n in builder.info.features]
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
            films.add(ids.to_pylist(), codes, batch)
            if known:
                _add_users(users, known, batch)
    except tf.errors.OpError as error:
        raise InputError(
            f"{builder.data_dir}: expected what TFDS prepared for "
            f"'tfds:{name}'. Received: {' '.join(error.message.split())}"
        ) from error
    columns = {role: pa.chunked_array(chunks[role]) for role in _ROLES}
    if not known:
        return pa.table(columns), films.table(), None
    rows = [[user_id, *row] for user_id, row in users.items()]
    names = ["user_id", *(_USER_FIELDS[n] for n in known)]
    found = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    return pa.table(columns), films.table(), pa.table(found)


# What TFDS repeats of the user with each rating, and our names.
_USER_FIELDS = {
    "user_gender": "gender",
    "raw_user_age": "age",
    "bucketized_user_age": "age_group",
    "user_occupation_text": "occupation",
    "user_zip_code": "zip",
}


def _add_users(
    users: dict[str, list[Any]], known: list[str], batch: dict[str, Any]
) -> None:
    """Adds the users of a batch that are new."""
    # pylint: disable-next=import-outside-toplevel
    import tensorflow as tf

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


class _Films:
    """Collects titles and genres, which TFDS repeats with each rating."""

    def __init__(self, genre_names: list[str]) -> None:
        self._genre_names = genre_names
        self._ids: list[str] = []
        self._titles: list[str] = []
        self._genres: list[list[str]] = []
        self._known: set[str] = set()

    def add(self, ids: list[str], codes: Any, batch: dict[str, Any]) -> None:
        """Adds the new films of a batch, whose rows are `codes` of `ids`."""
        # pylint: disable-next=import-outside-toplevel
        import tensorflow as tf

        new = [i for i, item_id in enumerate(ids) if item_id not in self._known]
        if not new:
            return
        first = tf.math.unsorted_segment_min(
            tf.range(tf.size(codes)), codes, len(ids)
        )
        rows = tf.gather(first, new)
        self._ids += [ids[i] for i in new]
        self._known.update(self._ids[-len(new) :])
        titles = tf.gather(batch["movie_title"], rows).numpy()
        self._titles += [title.decode("utf-8") for title in titles]
        for labels in tf.gather(batch["movie_genres"], rows).numpy():
            names = [self._genre_names[i] for i in labels if i != _PADDING]
            self._genres.append(
                [n for n in names if n.lower() not in items_lib.NO_GENRES]
            )

    def table(self) -> pa.Table:
        """Returns the items table of all films."""
        return _films_table(self._ids, self._titles, self._genres)


def _batches(builder: Any) -> Iterator[dict[str, Any]]:
    """Yields batches of the fields that are used.

    TFDS decodes rows one by one; parsing batches of records is about thirty
    times as fast.
    """
    # pylint: disable-next=import-outside-toplevel
    import tensorflow as tf

    from recsys.data.pipeline import without_autotune

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
