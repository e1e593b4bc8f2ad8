"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from recsys.errors import InputError


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary path that becomes `path` when the block succeeds.

    The block may make a file or a folder there. A process killed inside the
    block, or a full disk, leaves `path` as it was.

    Args:
        path: Where the result belongs. An existing folder is replaced only
            after the new one is complete.

    Yields:
        The temporary path, in the same folder and with the same ending.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    _remove(temporary)
    try:
        yield temporary
        _flush_to_disk(temporary)
        if path.is_dir():
            _remove(path)
        os.replace(temporary, path)
    except OSError as error:
        # A failed write, unlike a failed open, does not say where.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: It is missing or not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a JSON file that can be read. Received: {error}"
        ) from error


def is_new_or_empty(folder: pathlib.Path) -> bool:
    """Whether a folder is not there yet, or has nothing in it."""
    if not folder.exists():
        return True
    return folder.is_dir() and not any(folder.iterdir())


def can_write(folder: pathlib.Path) -> bool:
    """Whether a folder can be written, or be made where it is missing."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    return existing.is_dir() and os.access(existing, os.W_OK)


def _flush_to_disk(path: pathlib.Path) -> None:
    files = path.rglob("*") if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
