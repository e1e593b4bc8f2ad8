"""The machine: files written whole and never over others'; its cores."""

from __future__ import annotations

import contextlib
import ctypes
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

from recsys.errors import InputError

# The member of our JSON objects that holds their checksum.
_CHECKSUM = "sha256"
_TEMPORARY = re.compile(r"\.recsys-(\d+)-.+")


def num_usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    # Not every system can restrict a process to some cores.
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextlib.contextmanager
def atomic_path(
    path: pathlib.Path, *, is_ours: bool = False
) -> Iterator[pathlib.Path]:
    """Provides a temporary path that becomes `path` if the block succeeds.

    The block may create a file or a folder there. If the process is killed or
    the disk is full, `path` stays as it was; the next process that writes
    `path` removes the temporary files of dead ones.

    Args:
        path: The final path. A file may replace an existing file.
        is_ours: Whether an existing folder was written by this package. A
            folder may replace such a folder, and an empty one.

    Yields:
        The temporary path, in the same folder and with the same extension.

    Raises:
        InputError: The result would replace a folder that is not ours, a
            folder by a file, or a file by a folder.
        OSError: The result could not be written.
    """
    for left in path.parent.glob(f".recsys-*-{glob.escape(path.name)}"):
        if "-old-" in left.name and not path.exists() and is_stale(left):
            os.replace(left, path)  # Killed between the two renames.
        remove_if_stale(left)
    temporary = path.with_name(f".recsys-{os.getpid()}-{path.name}")
    _remove(temporary)
    try:
        if not is_ours and path.is_dir() and any(path.iterdir()):
            raise _not_ours(path)
        yield temporary
        _flush_to_disk(temporary)
        _replace(path, temporary)
    except OSError as error:
        # A failed write, unlike a failed open, does not name the file.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def _replace(path: pathlib.Path, temporary: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        if not temporary.is_dir():
            raise _not_ours(path)
        if _exchange(path, temporary):
            return  # `atomic_path` removes the old one.
        # Renamed first, so that the old folder is never half removed.
        old = path.with_name(f".recsys-{os.getpid()}-old-{path.name}")
        os.replace(path, old)
        os.replace(temporary, path)
        _remove(old)
    elif path.is_file() and temporary.is_dir():
        raise InputError(
            f"{path}: expected a folder or nothing there. Received: a file"
        )
    else:
        os.replace(temporary, path)


def _exchange(one: pathlib.Path, two: pathlib.Path) -> bool:
    """Exchanges two paths in one step if the system and its disk can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    paths = os.fsencode(one), os.fsencode(two)
    return rename(here, paths[0], here, paths[1], exchange) == 0


def _not_ours(path: pathlib.Path) -> InputError:
    return InputError(
        f"{path}: expected a path that may be replaced; folders that recsys "
        "did not write are never replaced. Received: such a folder"
    )


def remove_if_stale(path: pathlib.Path) -> None:
    """Removes a temporary file or folder that a dead process left behind.

    Args:
        path: Any path; ignored unless it has one of our temporary names.
    """
    if is_stale(path):
        _remove(path)


def is_stale(path: pathlib.Path) -> bool:
    """Whether a path has a temporary name of a process of ours that is dead."""
    match = _TEMPORARY.fullmatch(path.name)
    if match is None:
        return False
    try:
        os.kill(int(match[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        pass
    return False


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file, completely or not at all; see `json_text`."""
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(value), "utf-8")


def json_text(value: Any) -> str:
    """Returns JSON; an object ends with the SHA-256 of its other members."""
    if isinstance(value, dict):
        value = {**value, _CHECKSUM: _checksum(value)}
    return json.dumps(value, indent=2) + "\n"


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
        InputError: The file is missing, not JSON, or has changed since
            `write_json` wrote it.
    """
    try:
        return parse_json(path.read_text("utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise _no_json(path, error) from error


def parse_json(text: str, path: object) -> Any:
    """Parses the text of a JSON file, without the checksum if it has one.

    Args:
        text: The text.
        path: The file, for messages.

    Raises:
        InputError: It is not JSON, or has changed since `json_text` made it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(path, error) from error
    noted = value.pop(_CHECKSUM, None) if isinstance(value, dict) else None
    if noted is not None and noted != _checksum(value):
        raise InputError(
            f"{path}: expected the JSON that recsys wrote. Received: another "
            "SHA-256; the file is damaged or was edited (to keep an edit, "
            f"remove the line `{_CHECKSUM}`)"
        )
    return value


def _no_json(path: object, error: Exception) -> InputError:
    return InputError(
        f"{path}: expected a readable JSON file. Received: {error}"
    )


def read_json_object(
    path: pathlib.Path, **types: type | tuple[type, ...]
) -> dict[str, Any]:
    """Reads a JSON object and checks the types of its members.

    Args:
        path: The file.
        **types: The type of each required member.

    Returns:
        The object; it may have other members.

    Raises:
        InputError: The file is missing or not a JSON object, has changed
            since `write_json` wrote it, or a member is missing or of another
            type.
    """
    return checked_object(read_json(path), path, **types)


def checked_object(
    found: Any, path: object, **types: type | tuple[type, ...]
) -> dict[str, Any]:
    """Checks a value as `read_json_object` does; `path` is for messages."""
    if not isinstance(found, dict):
        raise InputError(
            f"{path}: expected a JSON object. Received: {type(found).__name__}"
        )
    for name, kind in types.items():
        value = found.get(name)
        is_wrong_bool = isinstance(value, bool) and kind is not bool
        if name not in found or is_wrong_bool or not isinstance(value, kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            names = " or ".join(each.__name__ for each in kinds)
            what = type(value).__name__ if name in found else "nothing"
            raise InputError(
                f"{path}: expected `{name}` to be of type {names}. "
                f"Received: {what}"
            )
    return found


def is_new_or_empty(folder: pathlib.Path) -> bool:
    """Whether a folder does not exist or is empty."""
    if not folder.exists():
        return True
    return folder.is_dir() and not any(folder.iterdir())


def may_be_file(path: pathlib.Path) -> bool:
    """Whether a path is no folder, but in a folder that exists."""
    return not path.is_dir() and path.absolute().parent.is_dir()


def can_write(folder: pathlib.Path) -> bool:
    """Whether a folder can be written, or be created if it does not exist."""
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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
