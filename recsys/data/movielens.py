"""MovieLens, in GroupLens's own layouts and from TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.resources.abc import Traversable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys.data import input_files, tables
from recsys.data import items as items_lib
from recsys.data.columns import TextOptions
from recsys.data.interactions import Interactions
from recsys.errors import InputError
from recsys.files import atomic_path

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
    ids: Sequence[str], titles: Sequence[str], genres: Sequence[list[str]]
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
# Ratings, films and users.
_Columns = tuple[pa.Table, pa.Table, pa.Table | None]


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
    folder = pathlib.Path(builder.data_dir)
    columns = _read_cache(folder)
    if columns is None:
        # Imports TensorFlow, which only records need.
        from recsys.data import tfds_records

        ratings, films, users = tfds_records.read(builder, name)
        table = _films_table(list(films), *zip(*films.values(), strict=True))
        columns = ratings, table, users
        _write_cache(folder, columns)
    ratings, films, users = columns
    return tables.assemble([ratings], [f"tfds:{name}"]), films, users


# The columns of a configuration, cached in the folder that TFDS prepared. It
# replaces the folder as a whole, so they are never older than the records. The
# ratings come last: where they are cached, so are the others.
_CACHED = tuple(f"recsys-{n}.parquet" for n in ("films", "users", "ratings"))


def _read_cache(folder: pathlib.Path) -> _Columns | None:
    """Returns the columns, or None if not cached."""
    try:
        films, users, ratings = (
            pq.ParquetFile(folder / name).read() for name in _CACHED
        )
        return ratings, films, users if users.num_columns else None
    except (OSError, pa.ArrowException):
        return None


def _write_cache(folder: pathlib.Path, columns: _Columns) -> None:
    """Caches the columns, unless the folder is not writable."""
    ratings, films, users = columns
    found = (films, pa.table({}) if users is None else users, ratings)
    with contextlib.suppress(OSError):
        for name, table in zip(_CACHED, found, strict=True):
            with atomic_path(folder / name) as temporary:
                pq.write_table(table, temporary, compression="zstd")


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
