"""`python -m recsys.datasets`: lists the public data sets, or downloads one.

A download resumes where it broke off, also in another process, and is compared
with a checksum: the published one, or else that of the first download.
"""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import gzip
import hashlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from recsys.command_line import Command, add_config_flags
from recsys.errors import InputError
from recsys.files import atomic_path, read_json, read_json_object, write_json

_RECORD = "download.json"

COMMAND = Command(
    "recsys.datasets",
    "Lists the public data sets that --data takes by name: size of the "
    "download, which are on this machine, and license.",
    [
        "python -m recsys.datasets",
        "python -m recsys.datasets --download=ml-1m",
        "python -m recsys.train --data=amazon-2014/Beauty",
    ],
)
add_config_flags(COMMAND, ["datasets_dir"])
COMMAND.add_flag(str, "download", "Name of a set to download.", group="Data")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A public data set.

    Attributes:
        page: Address of the download; or, if `file` is given, of the page
            where that file is to be had with an account.
        terms: Its license, in a line.
        size: Bytes of the download; None if not known in advance.
        sha256: Published checksum of the download; None if there is none.
        columns: The names of the columns, for a file that has none.
        keys: What is kept of lines that are Python's dictionaries.
        file: What somebody with an account has to download.
    """

    page: str
    terms: str
    size: int | None = None
    sha256: str | None = None
    columns: str | None = None
    keys: Sequence[str] = ()
    file: str = ""


# Sizes and checksums are those that TensorFlow Datasets 4.9.10 has for these
# archives (url_checksums/movielens.txt). Of no other set is one known.
_SETS = pathlib.Path(__file__).parent / "data" / "public_sets.json"
DATASETS = {name: Dataset(**row) for name, row in read_json(_SETS).items()}


def find(name: str) -> Dataset | None:
    """Returns the data set of a name; None if there is none."""
    family, slash, category = name.partition("/")
    if not re.fullmatch(r"\w+" if slash else "", category, re.ASCII):
        return None
    found = DATASETS.get(f"{family}/<category>" if slash else name)
    return found and dataclasses.replace(
        found, page=found.page.replace("<category>", category)
    )


def folder_of(name: str, datasets_dir: str | None = None) -> pathlib.Path:
    """Returns the folder of a data set; of all of them for the name ""."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = datasets_dir or os.path.join(cache, "recsys")
    return pathlib.Path(os.path.expanduser(root), name)


def fetch(name: str, datasets_dir: str | None = None) -> pathlib.Path:
    """Returns the path of a data set, after downloading it if necessary.

    Args:
        name: Its name, such as "ml-1m" or "amazon-2014/Beauty".
        datasets_dir: Folder of the data sets. Default: `recsys` in
            $XDG_CACHE_HOME or ~/.cache.

    Returns:
        The archive or table, to be read as any other.

    Raises:
        InputError: There is no such set, it cannot be downloaded, or the file
            is not the one that it is expected to be.
    """
    dataset = find(name)
    if dataset is None:
        raise InputError(
            f"a data set must be one of {', '.join(DATASETS)}. "
            f"Received: {name!r}"
        )
    folder = folder_of(name, datasets_dir)
    target = folder / (dataset.file or dataset.page.rpartition("/")[2])
    if dataset.file and not target.is_file():
        raise InputError(
            f"{name!r} needs an account: download {dataset.file} from "
            f"{dataset.page} and put it into {folder}. "
            "Received: no such file there"
        )
    if not _is_verified(target):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            # Another process may be about to finish it.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                _download(name, dataset, target)
            if not _is_verified(target):
                _verify(target, target, dataset)
    return _as_json(target, dataset.keys) if dataset.keys else target


def _as_json(target: pathlib.Path, keys: Sequence[str]) -> pathlib.Path:
    """Returns JSON lines, to decode Python's dictionaries only once."""
    path = target.with_name("interactions.jsonl.gz")
    if path.is_file():
        return path
    with (
        atomic_path(path) as temporary,
        gzip.open(target, "rt", encoding="utf-8") as lines,
        gzip.open(temporary, "wt", compresslevel=1) as out,
    ):
        for number, line in enumerate(lines, 1):
            try:
                row = ast.literal_eval(line)
                out.write(json.dumps({k: row.get(k) for k in keys}) + "\n")
            except (SyntaxError, ValueError, AttributeError) as error:
                raise InputError(
                    f"{target}, line {number}: expected a Python dictionary. "
                    f"Received: {line[:120]!r}"
                ) from error
    return path


def _record(target: pathlib.Path) -> dict[str, Any]:
    path = target.with_name(_RECORD)
    return read_json_object(path) if path.is_file() else {}


def _is_verified(target: pathlib.Path) -> bool:
    """Whether a file is there as it was when its checksum was compared."""
    verified = _record(target).get("verified")
    return target.is_file() and _state(target) == verified


def _state(path: pathlib.Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def _verify(path: pathlib.Path, target: pathlib.Path, known: Dataset) -> None:
    """Compares a file with its checksum, and records it."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    record = _record(target)
    expected = known.sha256 or record.get("file_sha256", found)
    if found != expected:
        whose = "published" if known.sha256 else "of the first download, in "
        raise InputError(
            f"{path}: expected the SHA-256 {expected} ({whose}"
            f"{'' if known.sha256 else target.with_name(_RECORD)}). "
            f"Received: {found}"
        )
    record |= {
        "url": known.page,
        "file_sha256": found,
        "verified": _state(path),
    }
    write_json(target.with_name(_RECORD), record)


def _download(name: str, dataset: Dataset, target: pathlib.Path) -> None:
    """Downloads a file and compares it with its checksum."""
    # Its packages take longer to import than `--help` to print.
    from recsys import downloads

    size = f"{dataset.size / 1e6:,.1f} MB, " if dataset.size else ""
    print(f"Downloading {name} ({size}{dataset.terms}) to {target.parent}")
    part = target.with_name(f"{target.name}.part")
    downloads.download(name, dataset.page, part, target.with_name(_RECORD))
    try:
        _verify(part, target, dataset)
    except InputError:
        part.unlink()
        raise
    os.replace(part, target)


def main(values: dict[str, Any]) -> int:
    """Lists the data sets, or downloads one.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    root = folder_of("", values["datasets_dir"])
    if values["download"]:
        print(fetch(values["download"], values["datasets_dir"]))
        return 0
    print(f"{'name':24}{'download':>10}  here? (in {root})")
    for name, dataset in DATASETS.items():
        size = f"{dataset.size / 1e6:,.1f} MB" if dataset.size else "?"
        found = [
            path.parent.name
            for path in root.glob(
                f"{name.replace('<category>', '*')}/{_RECORD}"
            )
            if "verified" in read_json_object(path)
        ]
        print(
            f"{name:24}{'by hand' if dataset.file else size:>10}  "
            f"{', '.join(sorted(found)) or '-':10}  {dataset.terms}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
