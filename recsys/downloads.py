"""Downloads that resume where they broke off, also in another process."""

from __future__ import annotations

import pathlib
import time

import requests
import tqdm

from recsys.errors import InputError
from recsys.files import read_json_object, write_json

# Seconds without a byte until a connection is given up; attempts in a row that
# may bring less than a megabyte; seconds to wait after the first of them.
_TIMEOUT, _ATTEMPTS, _WAIT = 30.0, 5, 1.0


def download(
    name: str, url: str, part: pathlib.Path, record: pathlib.Path
) -> None:
    """Completes a file, trying again as long as there is progress.

    Args:
        name: What is downloaded, for messages.
        url: Its address.
        part: The file, or its first bytes if it exists.
        record: JSON file, whose "validator" tells whether the server's file
            is still the one that `part` began with.

    Raises:
        InputError: It cannot be downloaded.
    """
    part.touch()
    failures = 0
    while True:
        before = part.stat().st_size
        try:
            _receive(name, url, part, record)
            return
        except requests.RequestException as error:
            size_now = part.stat().st_size
            failures = 1 if size_now >= before + 2**20 else failures + 1
            # A certificate or an address does not get better.
            is_final = isinstance(
                error, requests.exceptions.SSLError | requests.HTTPError
            )
            if failures == _ATTEMPTS or is_final:
                raise InputError(
                    f"{name!r} needs {url}; rerun to resume after "
                    f"{size_now:,} bytes, or put a copy of the file into "
                    f"{part.parent}. Received: {' '.join(str(error).split())}"
                ) from error
            time.sleep(_WAIT * 2 ** (failures - 1))


def _receive(
    name: str, url: str, part: pathlib.Path, record: pathlib.Path
) -> None:
    """Appends what is missing; begins anew unless the server continues."""
    known = read_json_object(record) if record.is_file() else {}
    have = part.stat().st_size
    headers = {"Accept-Encoding": "identity"}
    if have and known.get("validator"):
        # Of a file that has changed, the server sends the whole.
        headers["Range"] = f"bytes={have}-"
        headers["If-Range"] = known["validator"]
    with requests.get(
        url, headers=headers, stream=True, timeout=_TIMEOUT
    ) as answer:
        code, span = answer.status_code, answer.headers.get("Content-Range", "")
        if code in (408, 429) or code >= 500:
            raise requests.ConnectionError(f"HTTP status {code}")
        if code == 416 or (code == 206 and f"bytes {have}-" not in span):
            part.write_bytes(b"")
            raise requests.ConnectionError(f"the server has no byte {have}")
        answer.raise_for_status()
        if code != 206:
            have = 0
            tag = answer.headers.get("ETag", "W/")
            modified = answer.headers.get("Last-Modified")
            known["validator"] = modified if tag.startswith("W/") else tag
            write_json(record, known)
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        options = {"total": total, "initial": have, "unit_scale": True}
        # Without a terminal there is no bar.
        bar = tqdm.tqdm(desc=name, unit="B", disable=None, **options)
        with bar, part.open("ab" if have else "wb") as file:
            for chunk in answer.iter_content(2**16):
                bar.update(file.write(chunk))
    if total not in (None, part.stat().st_size):
        raise requests.ConnectionError(f"the file ended before byte {total:,}")
