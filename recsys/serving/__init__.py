"""Exports of a trained model that run without this package."""

from __future__ import annotations

import pathlib

from recsys import files
from recsys.errors import InputError

# What each format is. It has a folder of its name in the export.
FORMATS = {
    "saved_model": "TensorFlow alone, raw ids in and out",
    "litert": "devices, indices in and out",
    "parquet": "item ids, titles and vectors",
    "numpy": "item ids, titles and vectors",
    "projector": "TensorBoard's embedding projector",
    "onnx": "ONNX Runtime, indices in and a vector out; extra [onnx]",
}
# Needs packages of an extra, so it is written only if it is named.
NOT_BY_DEFAULT = {"onnx": ("tf2onnx", "onnxruntime")}
# Marks a folder as an export, and lists its files.
MANIFEST = "export.json"
CARD = "MODEL_CARD.md"


def check_output(output: pathlib.Path) -> None:
    """Checks that an export may be written, without writing anything.

    Args:
        output: The folder, or a link to it.

    Raises:
        InputError: It cannot be written, or holds something other than an
            earlier export.
    """
    if not files.is_new_or_empty(output):
        foreign = _foreign(output)
        if foreign is not None:
            raise InputError(
                "--output must be a new or empty folder, or hold nothing but "
                f"an earlier export, which is replaced. Received: {output} "
                f"({foreign})"
            )
    # It is written next to its place, and moved there when it is complete.
    if not files.can_write(output.resolve().parent):
        raise InputError(
            f"--output must be a folder that can be written. Received: {output}"
        )


def _foreign(output: pathlib.Path) -> str | None:
    """Returns what is not of an earlier export; None if all of it is."""
    if not output.is_dir():
        return "not a folder"
    manifest = output / MANIFEST
    try:
        about = files.read_json_object(manifest, recsys=str, formats=dict)
    except InputError:
        return f"no {MANIFEST} of recsys"
    paths = {
        path.relative_to(output)
        for path in output.rglob("*")
        if path != manifest and (path.is_symlink() or not path.is_dir())
    }
    if "files" in about:
        others = paths - set(map(pathlib.Path, about["files"]))
    else:  # Earlier versions listed only the formats.
        others = {
            path for path in paths if path.parts[0] not in about["formats"]
        }
    return f"with {min(others)}" if others else None
